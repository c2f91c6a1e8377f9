"""The export to Every Eval Ever's schema 0.3.0 (arXiv 2606.14516): a file per run, and one with its samples.

Files have the places of the project's datastore: data/<collection>/<developer>/<model>/<uuid>.json, with
<uuid>_samples.jsonl next to it, which has a line per answered sample and score. The same run gives the same bytes.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import cast

from kvbench.common.files import replacing, write_atomic
from kvbench.report.export.common import Written, clean, hub_name, mean, metrics_of, model_id, read_runs, strings
from kvbench.store import AnsweredRecord, StoredRun, held_bytes
from kvbench.store.environment import hardware_words
from kvbench.store.read import run_key

SCHEMA_VERSION = "0.3.0"
Tree = dict[str, object]
# Names that no folder may have on some system, or that the datastore keeps for itself.
_RESERVED = {"con", "prn", "aux", "nul", "data", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def write_every_eval(folders: Iterable[Path], out: Path) -> Written:
    """Write the runs in `folders` below `out`. A run without an answer has no score to give and is left out."""
    runs = samples = left_out = 0
    files: list[Path] = []
    for run in read_runs(folders):
        if run.answered:
            files += _write_run(run, out)
            samples += len(run.answered)
            runs += 1
        else:
            left_out += 1
    return Written(runs, samples, left_out, tuple(files))


def _write_run(run: StoredRun, out: Path) -> list[Path]:
    """Write the two files of a run, and return their paths."""
    names = _names(run)
    place = Path("data", *(_component(names[key]) for key in ("collection", "developer", "model")))
    file = place / f"{_uuid(run)}_samples.jsonl"
    (out / place).mkdir(parents=True, exist_ok=True)
    digest, lines = hashlib.sha256(), 0
    with replacing(out / file) as temporary, open(temporary, "wb") as stream:
        for row in _instances(run, names):
            line = _json(row).encode() + b"\n"
            stream.write(line)
            digest.update(line)
            lines += 1
    details: Tree = {
        "format": "jsonl",
        "file_path": file.as_posix(),
        "hash_algorithm": "sha256",
        "checksum": digest.hexdigest(),
        "total_rows": lines,
    }
    aggregate = out / place / f"{_uuid(run)}.json"
    write_atomic(aggregate, _json(_aggregate(run, names, details), indent=2) + "\n")
    return [out / file, aggregate]


def _names(run: StoredRun) -> dict[str, str]:
    """Return the names of a run in the datastore."""
    label, part, identifier = run.manifest["label"], run.manifest["part"], model_id(run)
    benchmark, digest, device = run_key(run.manifest)
    variant = f"{label['method']}-b{label['budget']}-{digest}-{clean(device)}"
    developer, _, model = identifier.partition("/")
    return {
        "collection": part["suite"] if part else label["benchmark"],
        "developer": developer,
        "model": model,
        "id": identifier,
        "availability": "open_weights" if hub_name(run) else "unknown",
        "evaluation": f"{benchmark}/{identifier}/{variant}",
    }


def _component(name: str) -> str:
    """Return a name as a folder that every file system takes."""
    safe = "".join(c if c.isalnum() or c in "_.+=-" else "_" for c in name).rstrip(".")
    return f"{safe}_" if safe.partition(".")[0].lower() in _RESERVED or not safe else safe


def _uuid(run: StoredRun) -> str:
    """Return an id in the form of a random UUID, which depends on the run alone: exporting again replaces the file."""
    key = clean("/".join(run_key(run.manifest)))
    return str(uuid.UUID(bytes=hashlib.sha256(key.encode()).digest()[:16], version=4))


def _aggregate(run: StoredRun, names: Mapping[str, str], details: Tree) -> Tree:
    manifest = run.manifest
    identity, created = manifest["identity"], _seconds(manifest["created"])
    version = manifest["versions"].get("kvbench", "unknown")
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": names["evaluation"],
        "evaluation_timestamp": created,
        "retrieved_timestamp": _seconds(str(run.status.get("time") or manifest["created"])),
        "source_metadata": {
            "source_name": "kvbench",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {
            "name": "kvbench",
            "version": version,
            "additional_details": strings(cast(Mapping[str, object], manifest["versions"])),
        },
        "model_info": {
            "name": manifest["label"]["model"],
            "id": names["id"],
            "developer": names["developer"],
            "inference_engine": {"name": "kvbench", "version": version},
            "additional_details": strings(
                {
                    "deployment_type": "self_deployed",
                    "model_availability": names["availability"],
                    "dtype": identity["dtype"],
                    "weights": identity["model"]["weights"],
                }
            ),
        },
        "evaluation_results": [_result(run, names, metric) for metric in metrics_of(run)],
        "detailed_evaluation_results": details,
    }


def _result(run: StoredRun, names: Mapping[str, str], metric: str) -> Tree:
    """Return the mean of one score. Its range is given where the values are in [0, 1], as those of kvbench are."""
    manifest, part = run.manifest, run.manifest["part"]
    values = [record["scores"][metric] for record in run.answered if metric in record["scores"]]
    known = all(0 <= value <= 1 for value in values)
    bounds: Tree = {"score_type": "continuous", "min_score": 0.0, "max_score": 1.0} if known else {}
    lost = {status: sum(record["status"] == status for record in run.samples) for status in ("oom", "failed")}
    uncertainty: Tree = {"num_samples": len(values)} | ({"standard_deviation": stdev(values)} if values[1:] else {})
    return {
        "evaluation_result_id": _result_id(names, metric),
        "evaluation_name": manifest["label"]["benchmark"],
        "source_data": {
            "dataset_name": part["name"] if part else manifest["label"]["benchmark"],
            "source_type": "other",
            "additional_details": strings({"suite": part and part["suite"], "category": part and part["category"]}),
        },
        "metric_config": {
            "metric_id": f"kvbench.{metric}",
            "metric_name": metric,
            "lower_is_better": False,
            **bounds,
            "additional_details": strings({"is_headline": metric == manifest["headline"], **manifest["scoring"]}),
        },
        "score_details": {
            "score": mean(values),
            "details": strings({"samples_of_the_benchmark": manifest["num_samples"], **lost}),
            "uncertainty": uncertainty,
        },
        "generation_config": {
            "generation_args": {"temperature": 0.0},
            "additional_details": strings(_compression(run)),
        },
    }


def _compression(run: StoredRun) -> Tree:
    """Return what the KV cache was compressed with, what was kept, and the protocol."""
    identity, answered = run.manifest["identity"], run.answered
    return {
        "kv_cache_method": run.manifest["label"]["method"],
        "kv_cache_budget": run.manifest["label"]["budget"],
        "kv_cache_kept_share": mean([record["kept_mean"] / record["span"] for record in answered]),
        "kv_cache_bytes_share": mean([held_bytes(record) / record["kv_bytes_full"] for record in answered]),
        "kv_cache_settings": identity["method"],
        "protocol": identity["protocol"],
        "backend": identity["backend"],
        "seed": identity["seed"],
        "device": run.manifest["device"],
        "hardware": hardware_words([run.manifest]),
        "continued_with": run.manifest.get("continued_with"),
    }


def _instances(run: StoredRun, names: Mapping[str, str]) -> Iterator[Tree]:
    for record in run.answered:
        for metric in metrics_of(run):
            if metric in record["scores"]:
                yield _instance(run, names, record, metric)


def _instance(run: StoredRun, names: Mapping[str, str], record: AnsweredRecord, metric: str) -> Tree:
    answers, prediction = list(map(clean, record["answers"])), clean(record["prediction"])
    # The store does not hold prompts; the sample's id stands in for its prompt.
    raw = f"{run.manifest['label']['benchmark']}: {clean(record['id'])}"
    value = record["scores"][metric]
    row: Tree = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": names["evaluation"],
        "evaluation_result_id": _result_id(names, metric),
        "evaluation_name": run.manifest["label"]["benchmark"],
        "model_id": names["id"],
        "sample_id": clean(record["id"]),
        "sample_hash": _sample_hash(raw, answers),
        "interaction_type": "single_turn",
        "input": {"raw": raw, "reference": answers},
        "output": {"raw": [prediction]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": prediction,
                "extraction_method": "none",
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": value, "is_correct": value >= 1},
        "metadata": strings(
            {"metric": metric, "kept_mean": record["kept_mean"], "span": record["span"]}
            | {"kv_bytes": record["kv_bytes"], "kv_bytes_full": record["kv_bytes_full"]}
            | {f"meta.{key}": value for key, value in record["meta"].items()}
        ),
        "performance": _performance(record),
    }
    if (usage := _usage(record)) is not None:
        row["token_usage"] = usage
    return row


def _performance(record: AnsweredRecord) -> Tree:
    first = record["timings"].get("ttft_s")
    return {
        "time_to_first_token_ms": None if first is None else 1000 * first,
        "additional_details": strings(cast(Mapping[str, object], record["timings"])),
    }


def _usage(record: AnsweredRecord) -> Tree | None:
    """Return the tokens of a sample; None where the record lacks their numbers."""
    loose = cast(Mapping[str, object], record)
    read, written = loose.get("prompt_tokens"), loose.get("new_tokens")
    if not isinstance(read, int) or not isinstance(written, int) or read < 0 or written < 0:
        return None
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _result_id(names: Mapping[str, str], metric: str) -> str:
    return f"{names['evaluation']}/{clean(metric)}"


def _sample_hash(raw: str, reference: Sequence[str]) -> str:
    """Return the hash that the schema's tools use to find the same sample in other files."""
    text = json.dumps({"raw": raw, "reference": list(reference)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _seconds(time: str) -> str:
    """Return a stored time such as 2026-11-26T18:02:09Z as the seconds since 1970; "0" if it is none."""
    try:
        moment = datetime.datetime.fromisoformat(time)
    except ValueError:
        return "0"
    return str(int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()))


def _json(value: Tree, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
