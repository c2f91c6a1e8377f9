"""The export in the form of lm-evaluation-harness 0.4: a folder per model, method and budget, with its results.

`results_<time>.json` holds the scores of all its benchmarks, `samples_<benchmark>_<time>.jsonl` the answers. Tools that
read the harness's output folders read these. The store does not hold prompts, so the argument of a sample is its id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import cast

from kvbench.common.files import replacing, write_atomic
from kvbench.common.kinds import is_integer
from kvbench.report.export.common import Written, clean, json_text, mean, metrics_of, model_id, read_runs
from kvbench.store import AnsweredRecord, Manifest, Record, StoredRun, load_manifest
from kvbench.store.environment import hardware_words

Tree = dict[str, object]
_DIGITS = 8


def write_lm_eval(folders: Iterable[Path], out: Path) -> Written:
    """Write the runs in `folders` below `out`. A run without an answer has no score to give and is left out."""
    groups: dict[str, dict[Path, Manifest]] = {}
    for folder in folders:
        manifest = load_manifest(folder)
        groups.setdefault(_group(manifest), {})[folder] = manifest
    total = Written(0, 0)
    for name, members in sorted(groups.items()):
        stamp = min(manifest["created"] for manifest in members.values()).replace(":", "-")
        total += _write_group(members, out / name, stamp)
    return total


def _group(manifest: Manifest) -> str:
    """Return the folder of a run, which it shares with those of other benchmarks in the same setting."""
    identity = cast(Mapping[str, object], manifest["identity"])
    shared = {key: value for key, value in identity.items() if key != "protocol"} | {"device": manifest["device"]}
    mark = hashlib.sha256(json_text(shared).encode()).hexdigest()[:_DIGITS]
    label = manifest["label"]
    return f"{label['model']}__{label['method']}-b{label['budget']}-{mark}"


def _write_group(members: Mapping[Path, Manifest], folder: Path, stamp: str) -> Written:
    tasks = [manifest["label"]["benchmark"] for manifest in members.values()]
    results: dict[str, Tree] = {}
    samples = left_out = 0
    files: list[Path] = []
    first: StoredRun | None = None
    for run in read_runs(members):
        benchmark = run.manifest["label"]["benchmark"]
        task = benchmark if tasks.count(benchmark) == 1 else f"{benchmark}_{run.manifest['hash'][:_DIGITS]}"
        if not run.answered:
            left_out += 1
            continue
        first = first or run.slim()
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"samples_{task}_{stamp}.jsonl")
        with replacing(files[-1]) as temporary, open(temporary, "wb") as stream:
            for line in _samples(run):
                stream.write(line)
        results[task] = _task(run, task)
        samples += len(run.answered)
    if first is not None:
        content = json.dumps(_results(first, results), ensure_ascii=False, allow_nan=False, indent=2)
        files.append(folder / f"results_{stamp}.json")
        write_atomic(files[-1], content + "\n")
    return Written(len(results), samples, left_out, tuple(files))


def _samples(run: StoredRun) -> Iterator[bytes]:
    for number, record in zip(_numbers(run.samples), run.samples, strict=True):
        if record["status"] != "ok":
            continue
        line = json.dumps(_sample(cast(AnsweredRecord, record), number), ensure_ascii=False, allow_nan=False)
        yield clean(line).encode() + b"\n"


def _numbers(samples: Sequence[Record]) -> list[int]:
    """Return the number of each sample: its index in the dataset if all samples have one of their own, else its place.

    Tools join the answers of several runs by it, so it must not depend on which samples have an answer.
    """
    given = [record["meta"].get("index") for record in samples]
    indices = [index for index in given if is_integer(index)]
    return indices if len(set(indices)) == len(samples) else list(range(len(samples)))


def _sample(record: AnsweredRecord, number: int) -> Tree:
    prediction, target = clean(record["prediction"]), [clean(answer) for answer in record["answers"]]
    doc: Tree = {"id": record["id"], "answers": target, "meta": record["meta"]}
    return {
        "doc_id": number,
        "doc": doc,
        "target": target[0] if len(target) == 1 else target,
        "arguments": {"gen_args_0": {"arg_0": clean(record["id"]), "arg_1": {"temperature": 0.0, "do_sample": False}}},
        "resps": [[prediction]],
        "filtered_resps": [prediction],
        "filter": "none",
        "metrics": sorted(record["scores"]),
        "doc_hash": _digest(json_text(doc)),
        "prompt_hash": _digest(clean(record["id"])),
        "target_hash": _digest(json_text(target)),
        **record["scores"],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _task(run: StoredRun, task: str) -> Tree:
    """Return all that the results file says about one benchmark."""
    manifest, metrics = run.manifest, metrics_of(run)
    scores: Tree = {"alias": task}
    for metric in metrics:
        values = [record["scores"][metric] for record in run.answered if metric in record["scores"]]
        scores[f"{metric},none"] = mean(values)
        scores[f"{metric}_stderr,none"] = stdev(values) / len(values) ** 0.5 if len(values) > 1 else "N/A"
    version = manifest["identity"]["protocol"].get("version", 0)
    return {
        "results": scores,
        "group_subtasks": [],
        "configs": {
            "task": task,
            "num_fewshot": 0,
            "output_type": "generate_until",
            "generation_kwargs": {"temperature": 0.0, "do_sample": False},
            "metric_list": [{"metric": metric, "higher_is_better": True} for metric in metrics],
            "metadata": {
                "version": version,
                "protocol": manifest["identity"]["protocol"],
                "run": manifest["hash"],
                "hardware": clean(hardware_words([manifest]) or "") or None,
            },
        },
        "versions": version,
        "n-shot": 0,
        "higher_is_better": dict.fromkeys(metrics, True),
        "n-samples": {"original": manifest["num_samples"], "effective": len(run.answered)},
    }


def _results(run: StoredRun, tasks: Mapping[str, Tree]) -> Tree:
    """Return the content of the results file. `run` is one of the group, which share their setting."""
    manifest, identity = run.manifest, run.manifest["identity"]
    label, sections = manifest["label"], next(iter(tasks.values()))
    pretrained = model_id(run)
    return {
        **{section: {task: tasks[task][section] for task in sorted(tasks)} for section in sections},
        "config": {
            "model": "kvbench",
            "model_args": f"pretrained={pretrained},dtype={identity['dtype']},method={label['method']},"
            f"budget={label['budget']}",
            "model_dtype": identity["dtype"],
            "kv_cache_method": identity["method"],
            "kv_cache_budget": identity["budget"],
            "weights": identity["model"]["weights"],
            "backend": identity["backend"],
            "device": manifest["device"],
            "batch_size": "auto",
            "limit": None,
            "gen_kwargs": None,
            "random_seed": identity["seed"],
        },
        "git_hash": manifest["versions"].get("code"),
        "transformers_version": manifest["versions"].get("transformers"),
        "kvbench_version": manifest["versions"].get("kvbench"),
        "model_source": "kvbench",
        "model_name": pretrained,
        "model_name_sanitized": label["model"],
    }
