"""Synthetic runs for the tests of the report, as `kvbench.store.load_runs` would return them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench import store
from kvbench.store import RunNumbers, numbers_of

LENGTHS, DEPTHS = [500, 1000, 2000], [0, 50, 100]


@dataclass
class FakeRun:
    """A stand-in for a stored run, as far as the report reads it."""

    manifest: dict[str, Any]
    samples: list[dict[str, Any]]
    status: dict[str, Any] = field(default_factory=lambda: {"status": "done"})

    @property
    def answered(self) -> list[dict[str, Any]]:
        """The records with an answer."""
        return [sample for sample in self.samples if sample["status"] == "ok"]


def make_run(method: str, budget: str, score: float | None, **change: Any) -> FakeRun:
    """Return a run over the grid. `score` holds for every cell; None draws 0 or 1 per cell from the names."""
    lengths, depths = change.get("lengths", LENGTHS), change.get("depths", DEPTHS)
    rng = random.Random(f"{method} {budget}")
    share = 1.0 if budget == "full" else float(budget.removesuffix("B")) if "." in budget else 0.1
    samples = []
    for length in lengths:
        for depth in depths:
            value = score if score is not None else float(rng.random() < 0.2 + share)
            kept = share * length
            samples.append(
                {
                    "id": f"len{length:05d}-depth{depth:03d}-seed0",
                    "status": "ok",
                    "answers": ["7"],
                    "prediction": "7",
                    "scores": {"rouge1": value / 2, "recall": value},
                    "meta": {"length": length, "depth": depth},
                    "context": f"len{length:05d}-depth{depth:03d}",
                    "prompt_tokens": length,
                    "span": length,
                    "kept_mean": kept,
                    "kv_bytes": int(kept * 1024),
                    "kv_bytes_full": length * 1024,
                    "timings": {"prefill_s": 1.0, "compress_s": 0.05, "ttft_s": 1.2, "tpot_s": 0.02},
                }
            )
    protocol = {
        "version": 1,
        "lengths": lengths,
        "depths": depths,
        "question": change.get("question", "aware"),
    }
    identity = {
        "model": {"name": "smollm2_135m", "weights": change.get("model", "aaaa")},
        "protocol": protocol,
        "dtype": change.get("dtype", "float32"),
    }
    return FakeRun(
        manifest={
            "hash": change.get("hash", "0" * 64),
            "identity": {
                "method": {"name": method} | ({"store": {"bits": 2}} if method == "kivi" else {}),
                "budget": _number(budget),
                "seed": 0,
                "backend": "torch",
                **identity,
            },
            "label": {"method": method, "budget": budget, "benchmark": "needle", "model": "smollm2_135m"},
            "headline": "recall",
            "num_samples": len(samples),
            "device": change.get("device", "cpu"),
            "part": None,
            "scoring": {"metrics": {"recall": 1}},
        },
        samples=samples,
    )


def _number(budget: str) -> int | float | str | None:
    if budget.endswith("B"):
        return budget
    return None if budget == "full" else float(budget) if "." in budget else int(budget)


SUITE = {  # name: category, number of samples
    "qasper": ("single-doc QA", 8), "multifieldqa_en": ("single-doc QA", 6), "hotpotqa": ("multi-doc QA", 10),
    "gov_report": ("summarisation", 4),
}  # fmt: skip


def make_part(method: str, budget: str, dataset: str, scores: Sequence[float] | float, **change: Any) -> FakeRun:
    """Return a run of one dataset of a suite of four; `scores` by sample, or one for all."""
    category, number = SUITE.get(dataset, ("", 5))
    values = [scores] * number if isinstance(scores, int | float) else list(scores)
    run = make_run(method, budget, 0.0, lengths=[1000] * len(values), depths=[0], **change)
    for index, (sample, value) in enumerate(zip(run.samples, values, strict=True)):
        name = f"{dataset}-{index:04d}"
        sample |= {"id": name, "context": name, "scores": {"qa_f1": value}, "meta": {"index": index}}
        if "buckets" in change:
            sample["meta"]["bucket"] = change["buckets"][index]
    suite = change.get("suite", "longbench")
    data = {"name": dataset, "data_sha256": change.get("data", "d1")}
    protocol = {"question": change.get("question", "aware"), "protocol": "longbench-original", "dataset": data}
    run.manifest |= {
        "headline": "qa_f1",
        "part": {
            "suite": suite, "name": dataset, "order": change.get("order", [*SUITE, dataset].index(dataset)),
            "category": change.get("category", category), "means": change.get("means", {"avg-4": 4, "avg-9": 9}),
            "macros": change.get("macros", {"macro": 3}),
        },
        "scoring": change.get("scoring", {"metrics": {"qa_f1": 1}, "switches": {"strip": "none"}}),
        "hash": hashlib.sha256(f"{method} {budget} {dataset} {change}".encode()).hexdigest(),
    }  # fmt: skip
    run.manifest["identity"] |= {"protocol": protocol}
    run.manifest["label"] |= {"benchmark": f"{suite}-{dataset}"}
    return run


def make_suite(method: str, budget: str, score: float, **change: Any) -> list[FakeRun]:
    """Return the runs of one row: the same score on every dataset."""
    return [make_part(method, budget, dataset, score, **change) for dataset in SUITE]


def numbers(runs: Sequence[FakeRun]) -> list[RunNumbers]:
    """Return runs as tables take them."""
    return [numbers_of(run) for run in runs]


def out_of_memory(run: FakeRun, *positions: int) -> FakeRun:
    for position in positions:
        sample = run.samples[position]
        run.samples[position] = {key: sample[key] for key in ("id", "meta", "context")} | {"status": "oom"}
    return run


def store_run(root: Path, run: FakeRun, samples: int | None = None) -> None:
    """Write a run, or its first samples, as the runner does."""
    manifest = run.manifest
    with store.Run.open(
        root, label=manifest["label"], identity=manifest["identity"], config={},
        versions=manifest.get("versions", {"kvbench": "0.1.0"}), hardware=manifest.get("hardware"),
        headline=manifest["headline"], num_samples=manifest["num_samples"], device=manifest["device"],
        part=manifest.get("part"), scoring=manifest.get("scoring"),
    ) as stored:  # fmt: skip
        for sample in run.samples[:samples]:
            stored.append(sample)
        stored.set_status("done")
