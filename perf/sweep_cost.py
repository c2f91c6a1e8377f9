"""Cost of a sweep: kvbench's one group against kvpress, which runs every variant by itself, both in one run.

    python3 -m venv kvpress-venv && kvpress-venv/bin/pip install torch==2.13.0 kvpress==0.5.5
    python perf/sweep_cost.py --kvpress-python kvpress-venv/bin/python [--quick] [--out FILE.json]

40 variants, five methods at eight budgets, on the same token ids and weights in float32, greedily, always the same
number of new tokens. Both compress the context before they see the question: kvpress through its own pipeline, one
press and one ratio per call, kvbench with question="agnostic".

Each case has two fresh processes, kvbench's and kvpress', models loaded and warm before the clock starts, and they take
turns: kvbench's whole sweep, then a part of kvpress'. kvbench's figures are medians over the turns. kvpress runs its
sweep once, a single variant twice; each of its variants really ran, nothing is extrapolated. Its times include its
rendering of the text (milliseconds); kvbench gets the ids that this rendering made.

In the same turns, in kvbench's process: its own full cache; transformers' generate; and a floor that no sweep can
undercut: one prefill with SDPA, then what every row has to push through the weights by itself, its question's tokens
and its new ones, in one batch with an attention that costs nothing. In kvpress' process: its pipeline without a press.

Methods, with dials set alike. By streaming_llm and snapkv both keep the same tokens; by the others as many, but not the
same, at the same work: kvpress' AdaKVPress keeps all tokens and masks, and splits a layer's budget by another rule;
its PyramidKVPress is SnapKV where the last layer would keep less than the window, so at most budgets here. The fifth is
ada_pyramidkv as AdaKVPress(PyramidKVPress), which takes but the scores of the press inside, so it costs kvpress what
ada_snapkv does. The other candidate, h2o as ObservedAttentionPress, normalises differently and needs eager attention:
slower, and a second copy of the model. `--methods` takes it, but it favours kvbench.

Memory is the peak resident size of each process (ru_maxrss), kvbench's after its first sweep; `warm_mib` is what it
held after a warm-up of one variant. Without compression all must write the same tokens, else the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweep_cost_kvbench import METHODS

from kvbench.common.commit import commit

SHARES = (0.2, 0.5, 0.1, 0.3, 0.05, 0.4, 0.15, 0.25)  # of the context; the first n of them are a sweep of n budgets
QUESTION = "What is this text about? Answer in one sentence."
YARDSTICKS = ("kvbench_fullkv", "transformers_generate", "floor")
HEAD = """\
variants prompt  new kvpress s kvbench s  × less × fullkv × generate  × floor kvpr. MiB kvb. MiB same tokens"""
QUICK = {"tokens": 256, "new": "8,4", "budgets": 2, "counts": "1,5", "lengths": "256,512", "turns": 2}


class Side:
    """A worker in a process of its own, asked by JSON lines."""

    def __init__(self, name: str, command: list[str], threads: int) -> None:
        self._name = name
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        env = os.environ | quiet | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env=env, **pipes)

    def __call__(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self._name} process ended while asked to {do}; its error stands above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(
    args: argparse.Namespace, variants: list[list[Any]], tokens: int, new: int, *, main: bool
) -> dict[str, Any]:
    """Measure one case: a sweep on prompts of one length. The main cases have more turns, each with comparisons."""
    from kvbench.models.sources.embedded import folder

    here = Path(__file__).parent
    ours = Side("kvbench", [sys.executable, str(here / "sweep_cost_kvbench.py")], args.threads)
    theirs = Side("kvpress", [args.kvpress_python, str(here / "sweep_cost_kvpress.py")], args.threads)
    loaded = {
        "kvbench": ours("load", threads=args.threads),
        "kvpress": theirs("load", model=str(folder()), threads=args.threads, methods=args.methods),
    }
    prompts = [_prompt(ours, theirs, seed, tokens) for seed in range(args.prompts)]
    job = {"prompts": prompts, "new": new}
    for side in (ours, theirs):  # warm-up
        side("sweep", variants=variants[:1], **job)
    warm = {"kvbench": ours("memory")["resident"], "kvpress": theirs("memory")["resident"]}

    passes = 2 if len(variants) == 1 else 1
    work = variants * passes
    turns = min(args.turns if main else 2, len(work))
    timed: dict[str, list[float]] = {}
    part_s: list[float] = []
    their_ids: list[Any] = []
    peaks: dict[str, float] = {}
    for turn in range(turns):
        sweep = ours("sweep", variants=variants, **job)
        timed.setdefault("kvbench", []).append(sweep["seconds"])
        peaks.setdefault("kvbench", ours("memory")["peak"])
        answer = theirs("sweep", variants=work[turn * len(work) // turns : (turn + 1) * len(work) // turns], **job)
        part_s += answer["seconds"]
        their_ids += answer["ids"]
        if main or turn == 0:
            full = ours("sweep", variants=[["fullkv", None]], **job)
            plain = ours("plain", **job)
            floor = ours("floor", prompts=prompts, variants=len(variants), rows=sweep["rows"], new=new)
            timed.setdefault("kvbench_fullkv", []).append(full["seconds"])
            timed.setdefault("transformers_generate", []).append(plain["seconds"])
            for name, value in floor.items():
                timed.setdefault(f"floor_{name}", []).append(value)
            timed.setdefault("floor", []).append(sum(floor.values()))
    peaks["kvpress"] = theirs("memory")["peak"]
    without = theirs("sweep", variants=[["fullkv", 1.0]], **job)
    timed["kvpress_no_press"] = without["seconds"]
    for side in (ours, theirs):
        side.close()
    if {len(ids) for row in [*sweep["ids"], *their_ids] for ids in row} != {new}:
        raise SystemExit(f"every run should make {new} tokens; some did not")

    same: dict[str, list[bool]] = {}
    by_method: dict[str, float] = {}
    for (method, _), actual, yours in zip(variants, sweep["ids"], their_ids, strict=False):
        same.setdefault(method, []).append(actual == yours)
    for (method, _), item in zip(work, part_s, strict=True):
        by_method[method] = by_method.get(method, 0) + item / passes
    seconds = {name: statistics.median(values) for name, values in timed.items()}
    seconds["kvpress"] = sum(part_s) / passes
    actual = seconds["kvbench"]
    return {
        "variants": len(variants),
        "prompt_tokens": len(prompts[0]["ids"]),
        "context_tokens": prompts[0]["context_len"],
        "new_tokens": new,
        "rows_per_batch": sweep["rows"],
        "kvpress_passes": passes,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "turns": {name: [round(v, 3) for v in values] for name, values in timed.items()},
        "kvpress_seconds_by_method": {name: round(value, 3) for name, value in by_method.items()},
        "ratios": {
            "kvpress/kvbench": round(seconds["kvpress"] / actual, 2),
            **{f"kvbench/{name}": round(actual / seconds[name], 2) for name in YARDSTICKS},
            "kvbench/prefill_and_decode_floor": round(actual / (seconds["floor"] - seconds["floor_question"]), 2),
        },
        "peak_mib": {name: round(value) for name, value in peaks.items()},
        "warm_mib": {name: value and round(value) for name, value in warm.items()},
        "load_s": {name: round(answer["seconds"], 1) for name, answer in loaded.items()},
        "same_tokens_uncompressed": full["ids"][0] == plain["ids"] == without["ids"][0],
        "same_tokens": {name: f"{sum(values)}/{len(values)}" for name, values in same.items()},
        "versions": {name: answer["versions"] for name, answer in loaded.items()},
    }


def _prompt(ours: Side, theirs: Side, seed: int, tokens: int) -> dict[str, Any]:
    """Return a text whose rendering by kvpress' pipeline has `tokens` ids, give or take one, and these ids."""
    text = ours("text", seed=seed, tokens=tokens)
    context, question = theirs("encode", context=text, question=QUESTION)
    text = ours("text", seed=seed, tokens=2 * tokens - len(context) - len(question))
    context, question = theirs("encode", context=text, question=QUESTION)
    return {"context": text, "question": QUESTION, "ids": context + question, "context_len": len(context)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvpress-python", required=True, help="the interpreter of kvpress' virtual environment")
    parser.add_argument("--quick", action="store_true", help="small settings, to see that it works")
    parser.add_argument("--methods", type=_names, default="snapkv,streaming_llm,pyramidkv,ada_snapkv,ada_pyramidkv")
    parser.add_argument("--budgets", type=int, default=len(SHARES), help=f"the first N of {SHARES}")
    parser.add_argument("--tokens", type=int, default=1024, help="prompt length of the main cases and of --counts")
    parser.add_argument("--new", type=_numbers, default="32,16", help="tokens to generate; one main case for each")
    parser.add_argument("--counts", type=_numbers, default="1,5,10,20", help="smaller sweeps, in variants")
    parser.add_argument("--lengths", type=_numbers, default="512,2048,4096", help="prompt lengths for one budget")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3, help="of the main cases")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args()
    if shutil.which(args.kvpress_python) is None:
        parser.error(f"--kvpress-python {args.kvpress_python}: no such interpreter; --help says how to make one")
    begin = time.perf_counter()
    variants = [[method, share] for share in SHARES[: args.budgets] for method in args.methods]
    few = variants[: len(args.methods)]
    plan = [("main", variants, args.tokens, new) for new in args.new]
    plan += [("variants", variants[:n], args.tokens, args.new[0]) for n in args.counts if n < len(variants)]
    plan += [("length", few, tokens, args.new[0]) for tokens in args.lengths]
    cases = []
    print(HEAD)
    for kind, which, tokens, new in plan:
        cases.append({"case": kind, **measure(args, which, tokens, new, main=kind == "main")})
        print(_row(cases[-1]), flush=True)
    result = {
        "what": "a sweep by kvbench and by kvpress, question-agnostic, from the same token ids; seconds of the sweep, "
        "models loaded",
        "cases": cases,
        "methods": args.methods,
        "shares": SHARES[: args.budgets],
        "prompts": args.prompts,
        "model": "smollm2_135m",
        "dtype": "float32",
        "device": "cpu",
        "threads": args.threads,
        "machine": platform.machine(),
        "quick": args.quick,
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "versions": cases[0]["versions"],
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    if not all(case["same_tokens_uncompressed"] for case in cases):
        raise SystemExit(
            "without compression kvbench, transformers and kvpress should write the same tokens, but do not"
        )


def _row(case: dict[str, Any]) -> str:
    ratios, seconds, peak = case["ratios"], case["seconds"], case["peak_mib"]
    same = sum(int(v.split("/")[0]) for v in case["same_tokens"].values())
    return (
        f"{case['variants']:8} {case['prompt_tokens']:6} {case['new_tokens']:4}"
        f" {seconds['kvpress']:9.2f} {seconds['kvbench']:9.2f} {ratios['kvpress/kvbench']:7.2f}"
        f" {ratios['kvbench/kvbench_fullkv']:8.2f} {ratios['kvbench/transformers_generate']:10.2f}"
        f" {ratios['kvbench/floor']:8.2f} {peak['kvpress']:9} {peak['kvbench']:9} {same:5}/{case['variants']}"
    )


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such method: {', '.join(unknown)}; choose from {', '.join(METHODS)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()
