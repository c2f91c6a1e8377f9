"""A whole decode step of a model: 1 row and 16 rows of 32k tokens of context, the full cache against budgets.

    python perf/gpu/step.py [--out FILE.jsonl] [--seconds 100]

The model has the shape of Llama-3.1-8B and random weights. The prompts are not computed: the cache is filled with
random keys and values, of lengths as Ada-KV's where there is a budget. If the full caches of 16 rows do not fit into
the device's memory, fewer rows are measured, the same number with and without a budget. Steps run as the engine runs
them, eagerly and as CUDA graphs, from the choice of the last token to that of the next on the host. In the mode graph,
a step starts before the host knows the tokens of the last one. In the mode graph-host, the graph ends with the logits,
and the host uploads each step's input and chooses. The roofline is the
time in which a triad moves as many bytes as a step reads: the weights and what is kept. Next to it is the roofline of
the fastest ceiling that was measured. The peer is plain transformers with its StaticCache and its own
attention, eagerly. `python -m kvbench.profile` measures real prefills as well.
Modes that begin with own are those of transformers' layers instead of fused ones, and cublas-graph is the fused step
with cuBLAS's products.
Shape suffixes: B rows, U KV heads, T tokens, D head dimension, V vocabulary.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ceilings
import torch
import yaml
from bench import Bench
from layers import Shape, lengths
from stepping import Decoding, HostBetween, Stepping
from transformers import StaticCache

from kvbench import models
from kvbench.cache.base import Entry, KVCache
from kvbench.common.paths import conf_dir
from kvbench.engine import graph
from kvbench.engine.attention import kvbench_attention
from kvbench.engine.caches import make_cache, num_layers
from kvbench.engine.clock import now
from kvbench.engine.walk import FusedStep

_EAGER, _GRAPHED, _RESERVE, _PLAIN = 12, 48, 320, 4
_SPARE = 4e9  # bytes that the driver, the graphs and a step's own tensors may take
_WARM = 6  # steps that do not count: the first lays out the cache, graphs are recorded after some eager ones


@dataclass(frozen=True)
class Case:
    batch: int
    context: int
    budget: int | None  # None: the full cache
    kernel: str = "auto"
    asked: int | None = None  # rows, where they are more than fit

    def about(self) -> dict[str, Any]:
        fewer = {} if self.asked is None else {"asked_batch": self.asked}
        return {"batch": self.batch, "context": self.context, "budget": self.budget, **fewer}


def cases(toy: bool) -> list[Case]:
    """Yield the cases, the most telling first; a budget's full cache is measured next to it."""
    if toy:
        return [Case(2, 96, None), Case(2, 96, 24)]
    long = 32768
    pairs = [(16, 1024), (16, None), (1, 1024), (1, None), (16, 128), (1, 128)]
    return [*(Case(batch, long, budget) for batch, budget in pairs), Case(16, long, 1024, "flash_attn")]


def spec(toy: bool) -> models.ModelSpec:
    """Return what the model is. It is read from its YAML without Hydra, which a bare machine lacks."""
    name = "tiny" if toy else "shape/llama31_8b"
    node = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return models.ModelSpec.from_node(node)


def load(toy: bool) -> Any:
    """Return the model."""
    return models.load(spec(toy)).model


def weights_read(model: Any) -> int:
    """Return the bytes of the weights that a step reads: all, without an embedding of which it reads a few rows."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return sum(int(p.nbytes) for p in model.parameters()) - (0 if head is embedding else int(embedding.nbytes))


def row_bytes(model: Any, context: int) -> int:
    """Return the bytes of a row of the full cache."""
    config = model.config.get_text_config()
    slots = context + _RESERVE
    return 2 * num_layers(model) * config.num_key_value_heads * slots * config.head_dim * model.dtype.itemsize


def fitting(chosen: Sequence[Case], model: Any, memory: float) -> list[Case]:
    """Return the cases with no more rows than full caches fit next to the weights; above 4, a multiple of 4."""
    weights = sum(p.nbytes for p in model.parameters())
    result = []
    for case in chosen:
        rows = max(1, int((memory - weights - _SPARE) // row_bytes(model, case.context)))
        rows = rows if rows < 4 else rows // 4 * 4
        result.append(case if case.batch <= rows else replace(case, batch=rows, asked=case.batch))
    return result


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


def timed(decoding: Decoding, steps: Stepping, count: int) -> dict[str, float]:
    """Return median, 10th and 90th percentile of some steps, after a few that do not count."""
    took = sorted(decoding.take(steps, _WARM + count)[_WARM:])
    return {"tpot_s": statistics.median(took), "low_s": took[count // 10], "high_s": took[-1 - count // 10]}


@torch.inference_mode()
def measure(model: Any, case: Case, bench: Bench, ceiling: ceilings.Ceilings, record: Callable[..., None]) -> None:
    """Fill a cache and decode: eagerly, by graphs, and by graphs of the model's own layers."""
    begun = time.monotonic()
    cache = make_cache(model, "ragged", case.kernel)
    decoding = Decoding(model, cache, case.batch, case.context, bench.device)
    fill(cache, case, model, bench)
    kept = sum(cache.used_bytes(row) for row in range(case.batch))
    step = decoding.fused or decoding.call
    ways: dict[str, Stepping] = {"eager": decoding.eager(step)}
    recordable = graph.recordable(model, cache, "auto")
    if recordable is not None:
        ways["graph"] = decoding.recorded(step, recordable)
        recorder = recordable, graph.CudaRecorder(bench.device)
        ways["graph-host"] = HostBetween(decoding.caches, step, recorder, bench.device)
    if decoding.fused is not None:
        if recordable is not None:
            ways["cublas-graph"] = decoding.recorded(FusedStep(model, own_products=False), recordable)
            ways["own-graph"] = decoding.recorded(decoding.call, recordable)
        else:
            ways["own-eager"] = decoding.eager(decoding.call)
    read = weights_read(model) + kept
    for mode, steps in ways.items():
        with kvbench_attention(model):
            decoding.take(steps, 1)  # brings the rows together, which takes memory for a moment
            _reset_peak(bench)
            result = timed(decoding, steps, 4 if bench.toy else _GRAPHED if "graph" in mode else _EAGER)
        grown = decoding.grown * kept // (case.context if case.budget is None else case.budget)
        record(
            mode=mode,
            kernel=cache.kernel,
            decode_step="transformers" if decoding.fused is None or mode.startswith("own") else "fused",
            **result,
            tokens_s=case.batch / result["tpot_s"],
            **rooflines(result["tpot_s"], read + grown, ceiling),
            replayed=steps.replayed,
            kept_bytes=kept,
            cache_bytes=cache.bytes(),
            peak_bytes=torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else None,
            reserved_bytes=torch.cuda.max_memory_reserved() if bench.device.type == "cuda" else None,
            took_s=time.monotonic() - begun,
        )
    if recordable is None:
        record(mode="graph", kernel=cache.kernel, missing=graph.obstacle(model, cache))


def rooflines(tpot_s: float, nbytes: float, ceiling: ceilings.Ceilings) -> dict[str, float]:
    """Return the time in which a triad moves the bytes of a step, and a step's time as a multiple of it."""
    return {
        "step_bytes": nbytes,
        "roofline_s": nbytes / ceiling.triad,
        "times_roofline": tpot_s * ceiling.triad / nbytes,
        "times_best_roofline": tpot_s * ceiling.best / nbytes,
    }


@torch.inference_mode()
def plain(model: Any, case: Case, bench: Bench, ceiling: ceilings.Ceilings, record: Callable[..., None]) -> None:
    """Decode with transformers alone: a StaticCache of random keys and values, and the model's own attention."""
    config = model.config.get_text_config()
    cache = StaticCache(config=model.config, max_cache_len=case.context + 2 * _WARM + _PLAIN)
    cache.early_initialization(case.batch, config.num_key_value_heads, config.head_dim, model.dtype, bench.device)
    for layer in cache.layers:
        for slots in (layer.keys, layer.values):  # older versions count the slots that are not zero
            slots[:, :, : case.context].normal_(generator=bench.generator)
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length.fill_(case.context)
    token_B1 = torch.full((case.batch, 1), 7, device=bench.device)
    took = []
    for turn in range(2 + _PLAIN):
        begun = now(bench.device)
        position_B1 = torch.full_like(token_B1, case.context + turn)
        logits_B1V = model(
            input_ids=token_B1, position_ids=position_B1, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        token_B1 = torch.tensor(logits_B1V[:, -1].argmax(-1).tolist(), device=bench.device)[:, None]
        took.append(now(bench.device) - begun)
    tpot_s = statistics.median(took[2:])
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    record(
        mode="eager",
        kernel="transformers",
        tpot_s=tpot_s,
        tokens_s=case.batch / tpot_s,
        **rooflines(tpot_s, weights_read(model) + kept, ceiling),
    )


def _reset_peak(bench: Bench) -> None:
    gc.collect()
    bench.clean()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def run(bench: Bench) -> None:
    ceiling = ceilings.measured(bench)
    _reset_peak(bench)
    model = load(bench.toy)
    memory = torch.cuda.mem_get_info()[1] if bench.device.type == "cuda" else 1e12
    bench.record(what="model", weight_bytes=sum(p.nbytes for p in model.parameters()))
    chosen = fitting(cases(bench.toy), model, memory)
    full = [case for case in chosen if case.budget is None]
    for way, case in [*((measure, case) for case in chosen), *((plain, case) for case in full)]:
        about = case.about() | ({"kernel": "transformers"} if way is plain else {})
        if bench.left() < 8 and not bench.toy:
            bench.record(what="step", **about, skipped="no time left")
            continue
        try:
            way(model, case, bench, ceiling, partial(bench.record, what="step", **case.about()))
        except (torch.OutOfMemoryError, ValueError) as problem:
            bench.record(what="step", **about, missing=str(problem).splitlines()[0])
        except Exception as problem:
            if way is measure:
                raise
            bench.record(what="step", **about, missing=bench.survive(problem, "transformers"))
        _reset_peak(bench)


if __name__ == "__main__":
    run(Bench("step", __doc__))
