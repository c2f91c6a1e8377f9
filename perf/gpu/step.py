"""A whole decode step of a model: batch 1 and 16 at 32k tokens of context, the full cache against budgets.

    python perf/gpu/step.py [--out FILE.jsonl] [--seconds 100]

The model has the shape of Llama-3.1-8B and random weights. The prompts are not computed: the cache is filled with
random keys and values, of lengths as Ada-KV's where there is a budget. Steps run as the engine runs them, eagerly and
as CUDA graphs, from the choice of the last token to that of the next on the host. The roofline is the time in which
the device copies as many bytes as a step reads: the weights and what is kept. `python -m kvbench.profile` measures the
same with real prefills. Shape suffixes: B rows, U KV heads, T tokens, D head dimension, V vocabulary.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ceilings
import torch
from bench import Bench
from layers import Shape, lengths
from torch import Tensor

import kvbench
from kvbench.cache.base import Entry, KVCache
from kvbench.engine import graph
from kvbench.engine.attention import kvbench_attention
from kvbench.engine.caches import LayerCaches, make_cache, num_layers
from kvbench.engine.prefill import ContinuePass, now
from kvbench.engine.probe import last_logits
from kvbench.engine.survey import survey
from kvbench.profile.measure import weights_read

_EAGER, _GRAPHED, _RESERVE = 12, 48, 96
_WARM = 6  # steps that do not count: the first lays out the cache, graphs are recorded after some eager ones


@dataclass(frozen=True)
class Case:
    batch: int
    context: int
    budget: int | None  # None: the full cache
    kernel: str = "auto"

    def about(self) -> dict[str, Any]:
        return {"batch": self.batch, "context": self.context, "budget": self.budget}


def cases(toy: bool) -> list[Case]:
    """Yield the cases, the most telling first; a budget's full cache is measured next to it."""
    if toy:
        return [Case(2, 96, None), Case(2, 96, 24)]
    long = 32768
    pairs = [(16, 1024), (16, None), (1, 1024), (1, None), (16, 128), (1, 128)]
    return [*(Case(batch, long, budget) for batch, budget in pairs), Case(16, long, 1024, "flash_attn")]


def fill(cache: KVCache, case: Case, model: Any, bench: Bench) -> None:
    """Fill a cache with random keys and values, as if prompts had been compressed."""
    config = model.config.get_text_config()
    heads, dim = config.num_key_value_heads, config.head_dim
    mean = case.context if case.budget is None else case.budget
    kind = "equal" if case.budget is None else "adakv"
    for layer in range(num_layers(model)):
        for row in range(case.batch):
            shape = Shape(1, mean, heads=heads, kv_heads=heads, dim=dim)
            length_U1 = torch.tensor(lengths(kind, shape, seed=layer * case.batch + row), device=bench.device)[:, None]
            tokens = int(length_U1.max())
            k_UTD, v_UTD = (
                torch.randn(heads, tokens, dim, dtype=model.dtype, device=bench.device, generator=bench.generator)
                for _ in range(2)
            )
            keep_UT = torch.arange(tokens, device=bench.device) < length_U1
            cache.add(layer, [Entry(row, keep_UT, _RESERVE)], k_UTD, v_UTD)


class Decoding:
    """Greedy decoding of a batch, a step at a time. `seen` counts the tokens of a row, as positions do."""

    def __init__(self, model: Any, cache: KVCache, case: Case, device: torch.device) -> None:
        self._model, self._caches, self._device = model, LayerCaches(survey(model), cache), device
        self._rows, self.seen = list(range(case.batch)), case.context
        self._tokens = [7] * case.batch

    def call(self, ids_B1: Tensor, position_B1: Tensor, attention: ContinuePass) -> Tensor:
        return last_logits(self._model, ids_B1, position_B1, attention)

    def step(self, forward: graph.Forward) -> float:
        """Decode one token for every row; returns seconds."""
        begun = now(self._device)
        ids_B1 = torch.tensor([[token] for token in self._tokens], device=self._device)
        position_B1 = torch.full_like(ids_B1, self.seen)
        logits_BV = forward(ids_B1, position_B1, ContinuePass(self._caches, self._rows))
        self._tokens = logits_BV.argmax(-1).tolist()
        self.seen += 1
        return now(self._device) - begun


def timed(decoding: Decoding, forward: graph.Forward, steps: int) -> dict[str, float]:
    """Return median, 10th and 90th percentile of some steps, after a few that do not count."""
    for _ in range(_WARM):
        decoding.step(forward)
    took = sorted(decoding.step(forward) for _ in range(steps))
    return {"tpot_s": statistics.median(took), "low_s": took[steps // 10], "high_s": took[-1 - steps // 10]}


@torch.inference_mode()
def measure(model: Any, case: Case, bench: Bench, bandwidth: float, record: Callable[..., None]) -> None:
    """Fill a cache and decode, eagerly and by graphs."""
    begun = time.monotonic()
    cache = make_cache(model, "ragged", case.kernel)
    fill(cache, case, model, bench)
    kept = sum(cache.used_bytes(row) for row in range(case.batch))
    decoding = Decoding(model, cache, case, bench.device)
    forwards: dict[str, graph.Forward] = {"eager": decoding.call}
    recordable = graph.recordable(model, cache, "auto")
    if recordable is not None:
        forwards["graph"] = graph.GraphedSteps(decoding.call, recordable, graph.CudaRecorder())
    read = weights_read(model) + kept
    for mode, forward in forwards.items():
        with kvbench_attention(model):
            decoding.step(forward)  # brings the rows together, which takes memory for a moment
            _reset_peak(bench)
            result = timed(decoding, forward, 4 if bench.toy else _EAGER if mode == "eager" else _GRAPHED)
        grown = (decoding.seen - case.context) * kept // (case.context if case.budget is None else case.budget)
        record(
            mode=mode,
            kernel=cache.kernel,
            **result,
            tokens_s=case.batch / result["tpot_s"],
            roofline_s=(read + grown) / bandwidth,
            times_roofline=result["tpot_s"] * bandwidth / (read + grown),
            replayed=getattr(forward, "replayed", 0),
            kept_bytes=kept,
            cache_bytes=cache.bytes(),
            peak_bytes=torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else None,
            reserved_bytes=torch.cuda.max_memory_reserved() if bench.device.type == "cuda" else None,
            took_s=time.monotonic() - begun,
        )
    if recordable is None:
        record(mode="graph", kernel=cache.kernel, missing=graph.obstacle(model, cache))


def _reset_peak(bench: Bench) -> None:
    gc.collect()
    bench.clean()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def run(bench: Bench, chosen: Sequence[Case]) -> None:
    _, bandwidth = ceilings.copy(bench)
    _reset_peak(bench)
    model = kvbench.load_model("tiny" if bench.toy else "shape/llama31_8b").model
    bench.record(what="model", bytes_s=bandwidth, weight_bytes=sum(p.nbytes for p in model.parameters()))
    for case in chosen:
        if bench.left() < 10 and not bench.toy:
            bench.record(what="step", **case.about(), skipped="no time left")
            continue
        try:
            measure(
                model,
                case,
                bench,
                bandwidth,
                partial(bench.record, what="step", **case.about()),
            )
        except (torch.OutOfMemoryError, ValueError) as problem:
            bench.record(what="step", **case.about(), missing=str(problem).splitlines()[0])
        _reset_peak(bench)


if __name__ == "__main__":
    this = Bench("step", __doc__)
    run(this, cases(this.toy))
