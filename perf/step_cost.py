"""Cost of a decode step of rows that are quantised or that evict, against a step of as many plain rows.

    python perf/step_cost.py [--methods kivi,think] [--rows 40] [--tokens 1000] [--new 12] [--repeats 3] [--threads 2]
                             [--out FILE.json]

Each batch holds copies of one variant (`name` or `name:budget`), from one prefill of a prompt. Batches take turns, and
the least time of a step counts, because other programs on the machine only ever make a step slower.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from conditions import conditions, report

import kvbench
from kvbench.benchmarks.prose import generated
from kvbench.engine import decode
from kvbench.engine.variant import Request, Variant
from kvbench.prompts import Prompt


def variant(text: str) -> Variant:
    """Return the variant that `name` or `name:budget` stands for."""
    name, _, budget = text.partition(":")
    return Variant(kvbench.load_method(name), None if not budget else float(budget) if "." in budget else int(budget))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--methods", default="kivi")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1000, help="prompt length")
    parser.add_argument("--new", type=int, default=12, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = kvbench.load_model(args.model)
    ids = tuple(loaded.tokenizer(generated(0, 8 * args.tokens))["input_ids"][: args.tokens])
    prompt = Prompt(ids=ids, context_len=len(ids), text="", stop_ids=frozenset())
    names = ["fullkv", *args.methods.split(",")]
    times: dict[str, list[float]] = defaultdict(list)
    kernels = set()
    for _ in range(args.repeats):
        for name in names:
            seconds: list[float] = []
            requests = iter([Request.of(prompt, [variant(name)] * args.rows, args.new)])
            answers = decode.stream(
                loaded.model,
                loaded.tokenizer,
                lambda _, requests=requests: next(requests, None),
                on_step=lambda took, _, seconds=seconds: seconds.append(took),
            )
            kernels |= {generation.kernel for _, generations in answers for generation in generations}
            times[name] += seconds
            print(name, round(1000 * min(seconds), 1), "ms", flush=True)
    result = {
        "what": f"a decode step of {args.rows} rows by a method / one of plain rows, least of all",
        "ratios": {name: round(min(times[name]) / min(times["fullkv"]), 3) for name in names[1:]},
        "steps": len(times["fullkv"]),
        "rows": args.rows,
        "prompt_tokens": len(ids),
        "kernel": ", ".join(sorted(kernels)),
        **conditions(loaded, args.model, args.threads),
    }
    report(result, args.out)


if __name__ == "__main__":
    main()
