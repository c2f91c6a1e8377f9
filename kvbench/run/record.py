"""What is stored of a generated sample, and whether it is what the budget promised."""

from __future__ import annotations

from typing import Any

from kvbench.benchmarks.base import Benchmark, Sample
from kvbench.common import clock
from kvbench.engine.variant import Generation, Variant


def broken_promise(variant: Variant, generation: Generation) -> RuntimeError | None:
    """The error of a generation whose measured budget is not what was asked for; None if it is."""
    heads = sum(map(len, generation.kept))
    kept, span = generation.kept_total, generation.span
    tokens = generation.budget_tokens
    if tokens is None or tokens >= span:
        wanted = heads * span
    else:
        wanted = heads * tokens
        if not variant.method.exact and kept < heads * span:
            return None  # a reference's rounding: it drifts, and the record shows by how much
    if kept == wanted:
        return None
    return RuntimeError(f"{variant} kept {kept} tokens of {heads * span} over all layers and heads instead of {wanted}")


def record(
    sample: Sample, generation: Generation | None, benchmark: Benchmark, error: str | None, device: str
) -> dict[str, Any]:
    """The line of samples.jsonl for a sample; without a generation it says why there is none."""
    common = {
        "id": sample.id,
        "status": "ok" if generation is not None else "oom",
        "error": error,
        "answers": list(sample.answers),
        "meta": dict(sample.meta),
        "device": device,
        "time": clock.now(),
    }
    if generation is None:
        return common
    return common | {
        "prediction": generation.text,
        "token_ids": generation.token_ids,
        "scores": benchmark.score(sample.answers, generation.text, sample.meta),
        "scoring": benchmark.scoring(),
        "prompt_tokens": generation.prompt_tokens,
        "span": generation.span,
        "new_tokens": len(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "budget_tokens": generation.budget_tokens,
        "kept": generation.kept,
        "kept_mean": generation.kept_mean,
        "kept_max_decode": generation.kept_max,
        "kv_bytes": generation.kv_bytes,
        "slack_bytes": generation.slack_bytes,
        "kv_bytes_full": generation.kv_bytes_full,
        "timings": dict(vars(generation.timings)),
        "rows": generation.rows,
        "kernel": generation.kernel,
    }
