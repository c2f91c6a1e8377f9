"""Decode steps on a CPU with our own ops between the products, against the steps of transformers' layers.

    python perf/cpu_steps.py [--model smollm2_135m] [--rows 1,8,40,100] [--tokens 1000] [--turns 3] [--threads 2]
                             [--out FILE.json]

Rows are copies of the full cache from one prefill. The contenders take turns. Ratios are of medians, and of least
times, because other programs only ever make a step slower.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from conditions import report, where
from cpu_bfloat16 import answers

import kvbench
from kvbench.benchmarks.prose import generated

CONTENDERS = {"transformers": "false", "fused": "true"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rows", default="1,8,40,100")
    parser.add_argument("--tokens", type=int, default=1000, help="prompt length")
    parser.add_argument("--new", type=int, default=8, help="tokens to generate while times are taken")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, object] = {}
    equal: list[str] = []
    for dtype in args.dtypes.split(","):
        loaded = kvbench.load_model(args.model, dtype=dtype)
        ids = tuple(loaded.tokenizer(generated(0, 8 * args.tokens))["input_ids"][: args.tokens])
        for rows in map(int, args.rows.split(",")):
            seconds: dict[str, list[float]] = defaultdict(list)
            tokens = set()
            for _ in range(args.turns):
                for name, fused in CONTENDERS.items():
                    _, steps, first = answers(loaded, "auto", ids, rows, args.new, fused)
                    seconds[name] += steps[1:]
                    tokens.add(first)
            case = f"{dtype}, {rows} rows"
            equal += [case] if len(tokens) == 1 else []
            result[case] = {
                "ms": {name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()},
                "of_transformers": round(
                    statistics.median(seconds["fused"]) / statistics.median(seconds["transformers"]), 3
                ),
                "least_of_transformers": round(min(seconds["fused"]) / min(seconds["transformers"]), 3),
            }
    report({**result, "equal_answers": equal, "model": args.model, **where(args.threads)}, args.out)


if __name__ == "__main__":
    main()
