"""A sweep of 20 variants over 20 samples in one plan, and the same sweep one variant after the other.

    python perf/gpu/sweep.py [all] [--out FILE.jsonl] [--seconds 72]

The variants are five methods under four budgets; the samples are prompts of 4096 random tokens, with answers of 16. The
model has the shape of Llama-3.1-8B and random weights. Both ways use the engine as a run does. Together, one prefill of
a sample serves all variants, and rows decode in batches as large as memory allows (`engine.max_rows` and
`engine.max_prompts` at no limit; afterwards also at their defaults). Alone, a variant prefills all samples again and
decodes its own rows together, also without a limit. Of the runs alone, one budget of each method is measured, and `all`
adds the others while there is time. The seconds of a run that is not measured are the mean of its method, or of all
methods. Every record says what ran. Loading the model and a first sample, which compiles and warms up, do not count.

Where the time goes: `prefill_s` is the model's work on the prompts without compression, as the engine times it.
`compress_s` is the rest of the time until the last prompt is in the cache, `layout_s` that of bringing the rows of all
prompts together and measuring their lengths and bytes. `first_token_s` and `decode_s` are those of the tokens, and
`rest_s` is what is left, for example for rows that leave.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from bench import Bench
from step import spec
from sweep_clock import Clock, watched

import kvbench
from kvbench import models
from kvbench.engine.clock import now
from kvbench.engine.decode import stream
from kvbench.engine.variant import Generation, Request, Variant
from kvbench.prompts import Prompt
from kvbench.run import memory
from kvbench.run.record import broken_promise

_DEFAULTS = (64, 8)  # engine.max_rows and engine.max_prompts
_PARTS = ("prefill_s", "compress_s", "layout_s", "first_token_s", "decode_s", "rest_s")


@dataclass(frozen=True)
class Sweep:
    """The variants and samples.

    Attributes:
        dials: of each method.
        budgets: tokens per KV head; the first is measured alone.
    """

    samples: int
    context: int
    new: int
    dials: Mapping[str, Mapping[str, object]]
    budgets: Sequence[int]

    def variants(self) -> list[Variant]:
        """Return the variants, a budget of all methods after the other."""
        loaded = [kvbench.load_method(name, **dials) for name, dials in self.dials.items()]
        return [Variant(method, budget) for budget in self.budgets for method in loaded]

    def prompts(self, vocab: int) -> list[Prompt]:
        """Return the samples, and one more to warm up. No token ends an answer."""
        drawn = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab, (self.samples + 1, self.context), generator=drawn).tolist()
        return [Prompt(tuple(row), context_len=self.context, stop_ids=frozenset(), text="") for row in ids]


_METHODS = ("snapkv", "ada_snapkv", "pyramidkv", "h2o", "streaming_llm")
_REAL = Sweep(20, 4096, 16, {name: {} for name in _METHODS}, (512, 256, 1024, 128))
_TOY = Sweep(3, 96, 8, {name: {} if name == "streaming_llm" else {"window": 8} for name in _METHODS}, (24, 16))

Row = tuple[int, Variant]  # the number of a sample, and a variant


@dataclass(frozen=True)
class Runner:
    """Answers samples under variants, through the engine."""

    bench: Bench
    loaded: models.Loaded
    shape: models.Shape
    prompts: Sequence[Prompt]

    def run(
        self, samples: Sequence[int], variants: Sequence[Variant], new: int, most: tuple[int, int] | None = None
    ) -> tuple[dict[str, Any], dict[Row, Generation]]:
        """Answer samples under variants. Return what a record says of it, and the answers.

        Args:
            most: rows and samples that decode together; None: as many as memory allows.

        Raises:
            RuntimeError: a row failed, or kept another number of tokens than its budget says.
        """
        bench, device = self.bench, self.bench.device
        gc.collect()
        bench.clean()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        free = int(memory.FRACTION * memory.free_bytes(self.loaded.device))
        most = most or (len(samples) * len(variants), len(samples))
        limits = memory.Limits(*most, free, self.shape, "aware")
        queue = {Request.of(self.prompts[sample], variants, new): sample for sample in samples}
        waiting = list(reversed(queue))
        clock = Clock(device)

        def draw(in_flight: Sequence[Request]) -> Request | None:
            if not waiting or (in_flight and not limits(in_flight, waiting[-1])):
                return None
            clock.drawn()
            return waiting.pop()

        answers: dict[Row, Generation] = {}
        shared = []  # a generation of each sample: all have the same timings of what they share
        begun = now(device)
        answered = stream(self.loaded.model, self.loaded.tokenizer, draw, max_length=sys.maxsize, on_step=clock.stepped)
        with watched(self.loaded.model, clock), closing(answered):
            for request, generations in answered:
                shared.append(generations[0])
                answers |= {(queue[request], v): g for v, g in zip(variants, generations, strict=True)}
        seconds = now(device) - begun
        for (_, variant), generation in answers.items():
            problem = generation.error or broken_promise(variant, generation)
            if problem is not None:
                raise problem if isinstance(problem, Exception) else RuntimeError(problem)
        about = {"samples": len(samples), "variants": len(variants), "rows": len(answers), "new_tokens": new}
        return about | self._measured(seconds, clock, shared), answers

    def _measured(self, seconds: float, clock: Clock, shared: Sequence[Generation]) -> dict[str, Any]:
        timings = [g.timings for g in shared]
        prefill_s = sum(t.prefill_s for t in timings)
        first_s = sum(t.ttft_s - t.prefill_s - t.compress_s for t in timings)
        parts = [prefill_s, clock.joined - prefill_s, clock.laid_out - first_s, first_s, sum(clock.step_s)]
        on_gpu = self.bench.device.type == "cuda"
        return {
            "seconds": seconds,
            **dict(zip(_PARTS, [*parts, seconds - sum(parts)], strict=True)),
            "prefills": len(shared),
            "rows_per_step": max(g.rows for g in shared),
            "steps": len(clock.step_s),
            "replayed": clock.replayed,
            "last_step_s": clock.step_s[-1] if clock.step_s else None,
            "kernel": shared[0].kernel,
            "decode_step": shared[0].decode_step,
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
            "reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        }


def equal_shares(alone: Mapping[Row, Generation], together: Mapping[Row, Generation]) -> dict[str, float]:
    """Return which share of the rows, of their first tokens and of all tokens is the same in both ways.

    `kept_equal` is the share of rows of which every head kept as many tokens.
    """
    pairs = [(generation, together[row]) for row, generation in alone.items()]
    tokens = [(a, b) for x, y in pairs for a, b in zip(x.token_ids, y.token_ids, strict=True)]
    return {
        "rows_equal": _share([x.token_ids == y.token_ids for x, y in pairs]),
        "first_tokens_equal": _share([x.token_ids[0] == y.token_ids[0] for x, y in pairs]),
        "tokens_equal": _share([a == b for a, b in tokens]),
        "kept_equal": _share([x.kept == y.kept for x, y in pairs]),
    }


def _share(same: Sequence[bool]) -> float:
    return sum(same) / len(same)


def whole(variants: Sequence[Variant], alone: Mapping[Variant, Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds of all variants alone, with their parts: measured, or as the mean of those of the method."""

    def of(variant: Variant, name: str) -> float:
        if variant in alone:
            return float(alone[variant][name])
        same = [r[name] for v, r in alone.items() if v.method.name == variant.method.name]
        every = same or [r[name] for r in alone.values()]
        return float(sum(every) / len(every))

    return {name: sum(of(variant, name) for variant in variants) for name in ("seconds", *_PARTS)}


def run(bench: Bench, everything: bool) -> None:
    sweep, begun = _TOY if bench.toy else _REAL, time.monotonic()
    if bench.toy:
        torch.set_num_threads(1)  # steps this small only wait for other threads
    model_spec = spec(bench.toy)
    loaded, variants = models.load(model_spec), sweep.variants()
    load_s = time.monotonic() - begun
    prompts = sweep.prompts(loaded.model.config.get_text_config().vocab_size)
    runner = Runner(bench, loaded, models.shape(model_spec), prompts)
    samples = range(sweep.samples)
    runner.run([sweep.samples], variants, min(8, sweep.new))
    bench.record(
        what="model",
        context=sweep.context,
        load_s=load_s,
        warm_s=time.monotonic() - begun - load_s,
        weight_bytes=sum(p.nbytes for p in loaded.model.parameters()),
    )
    few = (2 * len(variants), 2) if bench.toy else _DEFAULTS
    limits, failed = "memory", None
    try:
        together, answers = runner.run(samples, variants, sweep.new)
    except RuntimeError as problem:  # of memory too; what can be measured still is
        limits, failed = "defaults", bench.survive(problem, "all rows together")
        bench.record(what="together", limits="memory", missing=failed)
    if failed is not None:  # not above, where the error holds on to its tensors
        together, answers = runner.run(samples, variants, sweep.new, few)
    bench.record(what="together", limits=limits, **together)
    alone: dict[Variant, dict[str, Any]] = {}
    methods = len(sweep.dials)

    def one_by_one(chosen: Sequence[Variant]) -> None:
        for variant in chosen:
            longest = max((r["seconds"] for r in alone.values()), default=together["seconds"] / 3)
            about: dict[str, Any] = {"method": variant.method.name, "budget": variant.budget}
            if not bench.toy and bench.left() < 1.3 * longest:
                bench.record(what="alone", **about, skipped="no time left")
                return
            alone[variant], own = runner.run(samples, [variant], sweep.new)
            bench.record(what="alone", **about, **alone[variant], **equal_shares(own, answers))
            _summarize(bench, together, variants, alone)

    one_by_one(variants[:methods])
    if failed is None and (bench.toy or bench.left() > 1.3 * together["seconds"]):
        small, others = runner.run(samples, variants, sweep.new, few)
        bench.record(what="together", limits="defaults", **small, **equal_shares(others, answers))
    if everything or bench.toy:
        one_by_one(variants[methods:])
    if failed is not None:
        raise SystemExit(f"sweep: all rows together: {failed}")


def _summarize(
    bench: Bench, together: Mapping[str, Any], variants: Sequence[Variant], alone: Mapping[Variant, Mapping[str, Any]]
) -> None:
    """Record the ratio. The last of these records has the most runs."""
    total = whole(variants, alone)
    bench.record(
        what="ratio",
        times=total["seconds"] / together["seconds"],
        variants=len(variants),
        samples=together["samples"],
        measured_alone=len(alone),
        measured_alone_s=sum(r["seconds"] for r in alone.values()),
        together={name: together[name] for name in total},
        alone=total,
    )


def main(argv: Sequence[str]) -> None:
    chosen = list(argv)
    everything = bool(chosen) and chosen[0] == "all"
    run(Bench("sweep", __doc__, chosen[1:] if everything else chosen), everything)


if __name__ == "__main__":
    main(sys.argv[1:])
