"""Cost of a sweep: 40 variants in one group against one run of the full cache, on the same prompt.

    python perf/fused_cost.py [--tokens 1000] [--new 32] [--repeats 5] [--threads 2] [--out FILE.json]

One group: five methods at eight budgets. End to end: from prompt ids to text, prefill included. Next to both, a run of
the full cache by plain transformers (`model.generate`), and the floor under such a plan: one prefill, then as many
decode steps of as many rows with an attention that costs nothing. All four are timed in turn, repeatedly, after a
warm-up; ratios are of the medians. Every row's tokens are then compared with those of the same variant run alone.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path

import torch
from conditions import conditions, report
from sweep_cost_kvbench import forward_seconds

import kvbench
from kvbench.benchmarks.prose import generated

METHODS = ("streaming_llm", "snapkv", "pyramidkv", "ada_snapkv", "ada_pyramidkv")
BUDGETS = (64, 96, 128, 192, 256, 320, 384, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="tokens kept per head, on average")
    parser.add_argument("--tokens", type=int, default=1000, help="prompt length")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = kvbench.load_model(args.model)
    ids = loaded.tokenizer(generated(0, 8 * args.tokens))["input_ids"][: args.tokens]
    files = {"headkv": {"table": loaded.hints["head_table"]}}
    methods, budgets = args.methods.split(","), [int(b) for b in args.budgets.split(",")]
    full = kvbench.Variant(kvbench.load_method("fullkv"))
    variants = [kvbench.Variant(kvbench.load_method(m, **files.get(m, {})), b) for m in methods for b in budgets]

    def run(which: list[kvbench.Variant]) -> tuple[float, list[kvbench.Generation]]:
        begin = time.perf_counter()
        out = kvbench.generate(
            loaded.model,
            loaded.tokenizer,
            [ids],
            which,
            max_new_tokens=args.new,
            stop_ids=[],
            max_rows=len(which),  # one prefill, however many variants there are
        )
        return time.perf_counter() - begin, out[0]

    def floor() -> float:
        prefill = forward_seconds(loaded.model, "sdpa", ids, 1, 0)
        steps = range(len(ids), len(ids) + args.new - 1)
        return prefill + sum(forward_seconds(loaded.model, "free", ids[:1], len(variants), i) for i in steps)

    def transformers() -> float:
        ids_1T = torch.tensor([ids])
        begin = time.perf_counter()
        with torch.inference_mode():
            new = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False, "pad_token_id": 0}
            loaded.model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **new)
        return time.perf_counter() - begin

    run([full])
    gc.collect()
    gc.freeze()  # as a sweep does, see kvbench/models/cache.py
    times: dict[str, list[float]] = {"transformers": [], "full": [], "floor": [], "plan": []}
    for _ in range(args.repeats):
        times["transformers"].append(transformers())
        times["full"].append(run([full])[0])
        times["floor"].append(floor())
        seconds, together = run(variants)
        times["plan"].append(seconds)
    same = [run([v])[1][0].token_ids == g.token_ids for v, g in zip(variants, together, strict=True)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "what": f"{len(variants)} variants in one plan / one fullkv run, end to end",
        "ratio_of_medians": round(medians["plan"] / medians["full"], 3),
        "ratio_to_transformers": round(medians["plan"] / medians["transformers"], 3),
        "ratio_to_floor": round(medians["plan"] / medians["floor"], 3),
        "ratios": [round(p / f, 3) for p, f in zip(times["plan"], times["full"], strict=True)],
        "seconds": {name: [round(v, 3) for v in values] for name, values in times.items()},
        "rows_identical_to_solo": f"{sum(same)}/{len(same)}",
        "prompt_tokens": len(ids),
        "new_tokens": args.new,
        "methods": methods,
        "budgets": budgets,
        **conditions(loaded, args.model, args.threads),
    }
    report(result, args.out)


if __name__ == "__main__":
    main()
