"""Cost of a decode step with a decode policy, next to a step of as many plain rows.

    python perf/decode_policies.py [--rows 40] [--tokens 1000] [--steps 16] [--repeats 4] [--threads 1] [--out FILE]

All rows hold `tokens` tokens: the rows of a policy are at their limit, and evict in every step. The batches take turns,
and a ratio is that of the least times, because other work on the machine can only make a step slower. With one thread
these are seconds of the processor, which leave out the time of other processes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from conditions import conditions, report

import kvbench
from kvbench.benchmarks.prose import generated
from kvbench.engine.decode import stream
from kvbench.engine.variant import Request
from kvbench.prompts import Prompt

METHODS = ("fullkv", "streaming_llm_decode", "h2o_decode", "tova", "scope")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1000, help="tokens that a head holds")
    parser.add_argument("--steps", type=int, default=16, help="steps of a batch; the first is not counted")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = kvbench.load_model(args.model)
    ids = loaded.tokenizer(generated(0, 8 * args.tokens))["input_ids"][: args.tokens]
    names = list(dict.fromkeys(["fullkv", *args.methods.split(",")]))
    best = {name: float("inf") for name in names}
    for _ in range(args.repeats):
        for name in names:
            best[name] = min(best[name], least_step(loaded, kvbench.load_method(name), ids, args))
    result = {
        "what": f"decode step of {args.rows} rows x {args.tokens} tokens / the same of plain rows",
        "ratios": {name: round(seconds / best["fullkv"], 3) for name, seconds in best.items()},
        "least_ms": {name: round(1000 * seconds, 1) for name, seconds in best.items()},
        "kernel": args.kernel,
        **conditions(loaded, args.model, args.threads),
    }
    report(result, args.out)


def least_step(loaded: Any, method: Any, ids: list[int], args: argparse.Namespace) -> float:
    """Return the seconds of the fastest decode step of a batch of equal rows."""
    budget = None if method.promises is None else args.tokens
    prompt = Prompt(ids=tuple(ids), context_len=len(ids), stop_ids=frozenset(), text="")
    queue = [Request.of(prompt, [kvbench.Variant(method, budget)] * args.rows, args.steps + 1)]
    steps: list[float] = []
    begin = time.process_time()

    def on_step(seconds: float, replayed: bool) -> None:
        nonlocal begin
        now = time.process_time()
        steps.append(now - begin if args.threads == 1 else seconds)
        begin = now

    answers = stream(
        loaded.model,
        loaded.tokenizer,
        lambda _: queue.pop() if queue else None,
        kernel=args.kernel,
        on_step=on_step,
    )
    for _ in answers:
        pass
    return min(steps[1:])


if __name__ == "__main__":
    main()
