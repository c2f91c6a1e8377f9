"""Synthetic stores of any size, written fast: methods x budgets x datasets of a suite, and needle grids.

`write_store(root, runs=10_000, samples=200)` or `python -m tests.helpers.synthetic_store ROOT --runs 10000`. The files
are those that the runner writes, to the byte layout of a record: manifest.json, samples.jsonl, status.json. Scores are
drawn from the names, so that a store is the same on every machine. A method has a strength, a budget costs quality, a
sample has a difficulty that all methods share, and the questions on one context share a part of it.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from kvbench.store import identity_hash

LAYERS, HEADS, SPAN, BYTES = 30, 3, 4000, 46080  # of the kept counts; tokens of a prompt; bytes of a token
CATEGORIES = ("single-doc QA", "multi-doc QA", "summarisation", "few-shot", "synthetic", "code")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_WORDS = [
    "the",
    "cache",
    "of",
    "a",
    "long",
    "prompt",
    "keeps",
    "what",
    "the",
    "question",
    "needs",
    "and",
    "drops",
    "the",
    "rest",
    "of",
    "its",
    "tokens",
]


def write_store(
    root: Path,
    runs: int = 24,
    samples: int = 20,
    budgets: int = 2,
    datasets: int = 3,
    needle: bool = False,
    per_context: int = 2,
    failures: float = 0.0,
    seed: int = 0,
) -> int:
    """Write at least `runs` runs of `samples` samples each below `root` and return how many there are.

    There are as many methods as it takes: every method has every budget and dataset, and the full cache comes first.
    `per_context` questions share a context. `failures` is the share of samples without an answer, half of them out of
    memory. With `needle`, one more benchmark has a grid of lengths and depths and stands alone.
    """
    benchmarks = [_dataset(index, datasets, samples, per_context) for index in range(datasets)]
    benchmarks += [_needle(samples)] if needle else []
    shares = SHARES[:budgets]
    methods = max(1, -(-(runs - len(benchmarks)) // (len(benchmarks) * len(shares))))
    variants: list[tuple[str, float | None]] = [("fullkv", None)]
    variants += [(f"method{index:03d}", share) for index in range(methods) for share in shares]
    for method, share in variants:
        for benchmark in benchmarks:
            _write_run(root, benchmark, method, share, failures, seed)
    return len(variants) * len(benchmarks)


def _dataset(index: int, number: int, samples: int, per_context: int) -> dict[str, Any]:
    """Return a dataset of the suite: its place, and what the records of all runs share."""
    name, category = f"dataset{index:02d}", CATEGORIES[index % len(CATEGORIES)]
    heads = []
    for at in range(samples):
        meta = {"dataset": name, "index": at, "length": SPAN // 2, "bucket": ("0-4k", "4-8k", "8k+")[at % 3]}
        heads.append((f"{name}-{at:04d}", f"{name}-context{at // per_context:04d}", meta))
    macros = min(number, len(CATEGORIES))
    place = {"suite": "synthetic", "name": name, "order": index, "category": category}
    place |= {"means": {f"avg-{number}": number}, "macros": {"macro": macros}, "samples": samples}
    protocol = {"name": "synthetic", "question": "agnostic", "protocol": "synthetic-v1", "dataset": {"name": name}}
    return {"name": f"synthetic-{name}", "part": place, "protocol": protocol, "headline": "qa_f1", "heads": heads}


def _needle(samples: int) -> dict[str, Any]:
    """Return a needle grid of at least `samples` cells; each cell is a sample with a context of its own."""
    depths = [0, 25, 50, 75, 100]
    lengths = [1000 * (1 + at) for at in range(-(-samples // len(depths)))]
    cells = [(length, depth) for length in lengths for depth in depths]
    heads = [
        (f"len{length:05d}-depth{depth:03d}-seed0", f"needle{length}-{depth}", {"length": length, "depth": depth})
        for length, depth in cells
    ]
    protocol = {"name": "needle", "question": "aware", "lengths": lengths, "depths": depths}
    return {"name": "needle", "part": None, "protocol": protocol, "headline": "recall", "heads": heads}


def _write_run(
    root: Path, benchmark: dict[str, Any], method: str, share: float | None, failures: float, seed: int
) -> None:
    settings: dict[str, Any] = {"name": method}
    if share is not None:
        settings |= {"window": 32, "score": {"_target_": "WindowAttention"}}
    identity = {
        "method": settings,
        "budget": share,
        "model": {"name": "tiny", "weights": "synthetic:0"},
        "protocol": benchmark["protocol"],
        "seed": 0,
        "dtype": "float32",
        "backend": "auto-ragged",
    }
    digest = identity_hash(identity)
    budget = "full" if share is None else str(share)
    manifest = {
        "schema": 1,
        "hash": digest,
        "identity": identity,
        "label": {"benchmark": benchmark["name"], "model": "tiny", "method": method, "budget": budget},
        "headline": benchmark["headline"],
        "num_samples": len(benchmark["heads"]),
        "versions": {"kvbench": "0.1.0"},
        "device": "cpu",
        "part": benchmark["part"],
        "scoring": {"metrics": {benchmark["headline"]: 1}},
        "created": "2026-01-01T00:00:00Z",
    }
    folder = root / benchmark["name"] / "tiny" / f"{method}-b{budget}-{digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "config.yaml").write_text(f"method: {{name: {method}}}\nbudget: {budget}\n")
    (folder / "samples.jsonl").write_text("".join(_lines(benchmark, method, share, failures, seed)))
    status = {"status": "done", "time": "2026-01-01T00:00:00Z", "recorded": len(benchmark["heads"])}
    (folder / "status.json").write_text(json.dumps(status) + "\n")


def _lines(benchmark: dict[str, Any], method: str, share: float | None, failures: float, seed: int) -> list[str]:
    """Return the lines of samples.jsonl."""
    heads, kept = benchmark["heads"], round(SPAN * (1.0 if share is None else share))
    scores = _scores(benchmark, method, share, seed)
    if "depth" in heads[0][2]:
        scores = (scores > 0.4).astype(float)  # a needle is retrieved or not
    rng = random.Random(f"{benchmark['name']} {method} {share} {seed}")
    counts = json.dumps([[kept] * HEADS] * LAYERS)
    lines = []
    for (name, context, meta), score in zip(heads, scores.tolist(), strict=True):
        start = f'{{"id": "{name}", "status": "%s", "error": %s, "answers": ["the rest"], "meta": {json.dumps(meta)}, '
        start += f'"context": "{context}", "device": "cpu", "time": "2026-01-01T00:00:00Z"'
        draw = rng.random()
        if draw < failures:
            status, error = ("oom", "out of memory") if draw < failures / 2 else ("failed", "the output is not finite")
            lines.append(start % (status, f'"{error}"') + "}\n")
            continue
        text = " ".join(rng.choices(_WORDS, k=8))
        seconds = 0.4 + 0.2 * draw
        lines.append(
            f'{start % ("ok", "null")}, "prediction": "{text}", "token_ids": [216, 33, 32, 30, 52, 17, 9, 2], '
            f'"scores": {{"{benchmark["headline"]}": {score:.4f}, "exact": {float(score > 0.9)}}}, '
            f'"prompt_tokens": {SPAN}, "span": {SPAN}, "new_tokens": 8, "finish_reason": "stop", '
            f'"budget_tokens": {kept}, "promise": "kept", "kept": {counts}, "kept_mean": {float(kept)}, '
            f'"kept_max_decode": {kept + 8}, "kv_bytes": {kept * BYTES}, "slack_bytes": 0, '
            f'"kv_bytes_full": {SPAN * BYTES}, "timings": {{"prefill_s": {seconds:.4f}, "compress_s": 0.02, '
            f'"ttft_s": {seconds + 0.03:.4f}, "tpot_s": {seconds / 20:.5f}}}, "rows": 4, "kernel": "cpu", '
            f'"decode_step": "transformers", "fallback": null}}\n'
        )
    return lines


def _scores(benchmark: dict[str, Any], method: str, share: float | None, seed: int) -> np.ndarray:
    """Return a score in [0, 1] per sample: difficulty of context and sample, minus the loss of method and budget."""
    heads = benchmark["heads"]
    shared = np.random.default_rng([seed, *benchmark["name"].encode()])
    own = np.random.default_rng([seed, *f"{benchmark['name']} {method} {share}".encode()])
    contexts = {context: shared.normal(0, 0.15) for context in dict.fromkeys(head[1] for head in heads)}
    difficulty = np.array([contexts[head[1]] for head in heads]) + shared.normal(0.6, 0.2, len(heads))
    if share is None:
        return np.clip(difficulty, 0, 1)
    strength = random.Random(method).random()
    loss = 0.3 * (1 - strength) * (1 - share) ** 2
    return np.clip(difficulty - loss + own.normal(0, 0.12, len(heads)), 0, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a synthetic store.")
    parser.add_argument("root", type=Path)
    for option, default in {"runs": 24, "samples": 20, "budgets": 2, "datasets": 3, "per-context": 2}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--failures", type=float, default=0.0)
    parser.add_argument("--needle", action="store_true")
    print(write_store(**vars(parser.parse_args())), "runs")
