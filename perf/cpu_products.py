"""Prefill and decode steps of a float32 model on a CPU with oneDNN's products, against MKL's.

    python perf/cpu_products.py [--model smollm2_135m] [--rows 1,8,40,100] [--tokens 1000] [--turns 3] [--threads 2]
                                [--out FILE.json]

Rows are copies of the full cache from one prefill; `products` are the model's products of that many tokens alone. The
contenders take turns. Ratios are of medians, and of least times, because other programs only ever make a step slower.
On a processor where the engine does not choose oneDNN, the script measures it all the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import torch
from conditions import report, where
from cpu_bfloat16 import answers
from torch import nn

import kvbench
from kvbench.benchmarks.prose import generated
from kvbench.engine import products_cpu

CONTENDERS = {"MKL": False, "oneDNN": True}


def products(model: nn.Module, tokens: int) -> float:
    """Return the seconds of one call of every linear module of a model, with that many tokens."""
    modules = [module for module in model.modules() if type(module) is nn.Linear]
    inputs = {width: torch.randn(tokens, width) for width in {module.in_features for module in modules}}
    begin = time.perf_counter()
    with torch.inference_mode(), products_cpu.fast_products(torch.zeros(tokens, 1)):
        for module in modules:
            module(inputs[module.in_features])
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--rows", default="1,8,40,100")
    parser.add_argument("--tokens", type=int, default=1000, help="prompt length")
    parser.add_argument("--new", type=int, default=8, help="tokens to generate while times are taken")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = kvbench.load_model(args.model, dtype="float32")
    ids = tuple(loaded.tokenizer(generated(0, 8 * args.tokens))["input_ids"][: args.tokens])
    chosen = products_cpu.is_faster()
    seconds: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    tokens: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for _ in range(args.turns):
        for rows in map(int, args.rows.split(",")):
            for name, faster in CONTENDERS.items():
                with patch.object(products_cpu, "is_faster", lambda faster=faster: faster):
                    seconds["products", rows][name].append(min(products(loaded.model, rows) for _ in range(3)))
                    prefill, steps, first = answers(loaded, "cpu", ids, rows, args.new)
                tokens[rows].add(first)
                seconds["step", rows][name] += steps[1:]
                if rows == 1:
                    seconds["prefill", args.tokens][name].append(prefill)
    result = {
        f"{what}, {number} tokens": {
            "ms": {name: round(1000 * statistics.median(times), 2) for name, times in of.items()},
            "of_MKL": round(statistics.median(of["oneDNN"]) / statistics.median(of["MKL"]), 3),
            "least_of_MKL": round(min(of["oneDNN"]) / min(of["MKL"]), 3),
        }
        for (what, number), of in seconds.items()
    }
    answer = {"rows_with_equal_answers": [rows for rows, different in tokens.items() if len(different) == 1]}
    report({**result, **answer, "chosen_here": chosen, "model": args.model, **where(args.threads)}, args.out)


if __name__ == "__main__":
    main()
