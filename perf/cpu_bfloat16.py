"""Prefill and decode step of a model in bfloat16 against float32 on a CPU, and how far its answers agree.

    python perf/cpu_bfloat16.py [--model smollm2_135m] [--rows 1,40] [--tokens 1000] [--turns 5] [--threads 2]
                                [--out FILE.json]

Rows are copies of the full cache from one prefill. The contenders take turns. Ratios are given twice: of medians, and
of least times, because other programs on the machine only ever make a step slower. `torch` is the backend that ran for
bfloat16 before the kernel `cpu` did. Answers are greedy, each from a prompt of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from conditions import report, where

import kvbench
from kvbench.benchmarks.prose import generated
from kvbench.engine import decode
from kvbench.engine.variant import Request, Variant
from kvbench.prompts import Prompt

CONTENDERS = {"float32": "cpu", "bfloat16": "cpu", "bfloat16 torch": "torch"}  # dtype first, then the kernel


def answers(
    loaded: kvbench.Loaded, kernel: str, ids: tuple[int, ...], rows: int, new: int, fused: str = "auto"
) -> tuple[float, list[float], tuple[int, ...]]:
    """Return the seconds before the first step, those of each step, and the tokens of the first row."""
    prompt = Prompt(ids=ids, context_len=len(ids), text="", stop_ids=frozenset())
    requests = iter([Request.of(prompt, [Variant(kvbench.load_method("fullkv"), None)] * rows, new)])
    steps: list[float] = []
    begin = time.perf_counter()
    first: list[float] = []

    def on_step(seconds: float, replayed: bool) -> None:
        if not first:
            first.append(time.perf_counter() - begin - seconds)
        steps.append(seconds)

    stream = decode.stream(
        loaded.model, loaded.tokenizer, lambda _: next(requests, None), kernel=kernel, fused=fused, on_step=on_step
    )
    tokens = [generation.token_ids for _, generations in stream for generation in generations]
    return first[0], steps, tuple(tokens[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--rows", default="1,40")
    parser.add_argument("--tokens", type=int, default=1000, help="prompt length")
    parser.add_argument("--new", type=int, default=8, help="tokens to generate while times are taken")
    parser.add_argument("--prompts", type=int, default=10, help="prompts whose answers are compared")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {dtype: kvbench.load_model(args.model, dtype=dtype) for dtype in ("float32", "bfloat16")}
    tokenizer = models["float32"].tokenizer

    def prompt(seed: int) -> tuple[int, ...]:
        return tuple(tokenizer(generated(seed, 8 * args.tokens))["input_ids"][: args.tokens])

    result: dict[str, object] = {}
    for rows in map(int, args.rows.split(",")):
        prefill: dict[str, list[float]] = defaultdict(list)
        step: dict[str, list[float]] = defaultdict(list)
        for _ in range(args.turns):
            for name, kernel in CONTENDERS.items():
                first, seconds, _ = answers(models[name.split()[0]], kernel, prompt(0), rows, args.new)
                prefill[name].append(first)
                step[name] += seconds[1:]
        for what, times in (("prefill", prefill), ("step", step)):
            result[f"{what}, {rows} rows"] = {
                name: {
                    "ms": round(1000 * statistics.median(seconds), 2),
                    "least_ms": round(1000 * min(seconds), 2),
                    "of_float32": round(statistics.median(seconds) / statistics.median(times["float32"]), 3),
                    "least_of_float32": round(min(seconds) / min(times["float32"]), 3),
                }
                for name, seconds in times.items()
            }
            print(what, rows, result[f"{what}, {rows} rows"], flush=True)
    equal, same_first, prefixes = 0, 0, []
    for seed in range(args.prompts):
        wide, narrow = (answers(models[dtype], "cpu", prompt(seed), 1, 32)[2] for dtype in models)
        length = next(
            (i for i, (a, b) in enumerate(zip(wide, narrow, strict=False)) if a != b), min(len(wide), len(narrow))
        )
        equal, same_first, prefixes = equal + (wide == narrow), same_first + (length > 0), [*prefixes, length]
    result["answers"] = {
        "prompts": args.prompts,
        "new_tokens": 32,
        "first_token_equal": same_first,
        "all_equal": equal,
        "median_equal_prefix": statistics.median(prefixes),
    }
    report(
        {"what": "SmolLM2", **result, "prompt_tokens": args.tokens, "model": args.model, **where(args.threads)},
        args.out,
    )


if __name__ == "__main__":
    main()
