"""One cell measured: prompts of random ids through the engine that users run, steps timed from outside.

Timestamps are taken after every decode step. The engine has waited for the device by then, so the time between two of
them is a whole step: the model, the choice of tokens, and all that Python does around them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kvbench.engine.decode import stream
from kvbench.engine.probe import checked_plan
from kvbench.engine.variant import Generation, Request
from kvbench.models import Loaded
from kvbench.profile.cells import Cell, Profile
from kvbench.profile.peaks import Meter, Peak
from kvbench.prompts import Prompt
from kvbench.run.record import broken_promise

_WARM_UP_TOKENS = 8
_SETTLING = 5  # steps of a batch that are not typical: the cache is laid out, a graph is recorded


@dataclass(frozen=True)
class Pass:
    """All rows of a cell, once from prompt to last token.

    Attributes:
        generations: one per row.
        first_step_s: the first decode step, which lays the cache out for the batch; None if there is none.
        step_s: the steps of the whole batch, without those at its beginning if there are others.
        replayed: share of those that a recorded graph did.
        peak: memory, None where it cannot be known.
    """

    generations: Sequence[Generation]
    first_step_s: float | None
    step_s: Sequence[float]
    replayed: float
    peak: Peak | None


def measure(loaded: Loaded, cell: Cell, profile: Profile, cfg: Mapping[str, Any], meter: Meter) -> dict[str, Any]:
    """What a record says of a cell that ran: times in seconds, memory in bytes.

    Raises:
        RuntimeError: what was kept is not what the budget promises, or another kernel was at work; and what the
            engine raises, out of memory included.
    """
    checked_plan(loaded.model)  # its forward calls are not to be counted
    prompts = random_prompts(cell, loaded.model.config.get_text_config().vocab_size, int(cfg["seed"]))
    for _ in range(profile.warmup):
        run(loaded, cell, prompts[:1], _WARM_UP_TOKENS, cfg, meter)
    passes = [run(loaded, cell, prompts, profile.new_tokens, cfg, meter) for _ in range(profile.repeats)]
    for generation in passes[0].generations:
        problem = broken_promise(cell.variant, generation)
        if problem is not None:
            raise problem
        if generation.kernel != cell.kernel:
            raise RuntimeError(f"kernel={cell.kernel}: the engine decoded by {generation.kernel}")
    return _times(passes, cell) | _memory(passes, cell, loaded.model, profile)


def random_prompts(cell: Cell, vocab: int, seed: int) -> list[Prompt]:
    """As many different prompts of the cell's length as its batch has rows: the same for every method and budget."""
    prompts = []
    for number in range(cell.batch):
        generator = torch.Generator().manual_seed((seed << 20) + number)
        ids = tuple(torch.randint(vocab, (cell.context,), generator=generator).tolist())
        prompts.append(Prompt(ids, context_len=len(ids), stop_ids=frozenset(), text=""))  # nothing ends an answer
    return prompts


def run(
    loaded: Loaded, cell: Cell, prompts: Sequence[Prompt], new_tokens: int, cfg: Mapping[str, Any], meter: Meter
) -> Pass:
    """Every prompt under the cell's variant, all rows in one batch."""
    queue = [Request(prompt, [cell.variant], new_tokens) for prompt in reversed(prompts)]
    calls, first, stamps, by_graph = 0, None, [], []

    def called() -> None:
        nonlocal calls
        if calls == len(prompts):  # one call per prompt; this is the first step, which no graph does
            meter.prefilled()
        calls += 1

    def stepped(seconds: float, replayed: bool) -> None:
        nonlocal first
        first = seconds if first is None else first
        stamps.append(time.perf_counter())
        by_graph.append(replayed)

    meter.start()
    answers = stream(
        loaded.model,
        loaded.tokenizer,
        lambda _: queue.pop() if queue else None,
        cache=cfg["engine"]["cache"],
        kernel=cell.kernel,
        graph=str(cfg["engine"]["graph"]).lower(),
        on_step=stepped,
    )
    with _watching(loaded.model, called), closing(answers):
        generations = [generation for _, (generation,) in answers]
    peak = meter.read()
    skip = _SETTLING if len(stamps) > 2 * _SETTLING else 1
    steps, graphs = np.diff(stamps)[skip - 1 :].tolist(), by_graph[skip:]
    return Pass(generations, first, steps, statistics.mean(graphs) if graphs else 0.0, peak)


@contextmanager
def _watching(model: Any, called: Any) -> Iterator[None]:
    handle = model.register_forward_pre_hook(lambda *_: called())
    try:
        yield
    finally:
        handle.remove()


def _times(passes: Sequence[Pass], cell: Cell) -> dict[str, Any]:
    """Medians over prompts, steps and passes."""
    timings = [generation.timings for one in passes for generation in one.generations]
    mean = statistics.median(t.tpot_s for t in timings if t.tpot_s is not None)
    steps = [seconds for one in passes for seconds in one.step_s]
    first = [one.first_step_s for one in passes if one.first_step_s is not None]
    tpot = statistics.median(steps) if steps else mean
    low, high = np.percentile(steps, [10, 90]).tolist() if steps else (None, None)
    return {
        "prefill_s": statistics.median(t.prefill_s for t in timings),
        "compress_s": statistics.median(t.compress_s for t in timings),
        "ttft_s": statistics.median(t.ttft_s for t in timings),
        "tpot_s": tpot,
        "tpot_low_s": low,
        "tpot_high_s": high,
        "tpot_mean_s": mean,
        "first_step_s": statistics.median(first) if first else None,
        "steps": len(steps),
        "steps_by_graph": statistics.mean(one.replayed for one in passes),
        "tokens_per_s": cell.batch / tpot,
    }


def _memory(passes: Sequence[Pass], cell: Cell, model: Any, profile: Profile) -> dict[str, Any]:
    """The cache's bytes over all rows, the weights', the peaks (the highest of the passes), and what a step reads."""
    rows = passes[0].generations
    kept, full = sum(row.kv_bytes for row in rows), sum(row.kv_bytes_full for row in rows)
    grown = 0 if cell.variant.method.decode is not None else full // rows[0].span * profile.new_tokens // 2
    peaks = [one.peak for one in passes if one.peak is not None]
    reserved = [peak.reserved for peak in peaks if peak.reserved is not None]
    return {
        "kept_mean": statistics.mean(row.kept_mean for row in rows),
        "kv_bytes": kept,
        "kv_slack_bytes": sum(row.slack_bytes for row in rows),
        "kv_full_bytes": full,
        "weight_bytes": sum(p.nbytes for p in model.parameters()),
        "step_bytes": weights_read(model) + kept + grown,
        "base_bytes": peaks[0].base if peaks else None,
        "peak_bytes": max(max(peak.prefill, peak.decode) for peak in peaks) if peaks else None,
        "peak_prefill_bytes": max(peak.prefill for peak in peaks) if peaks else None,
        "peak_decode_bytes": max(peak.decode for peak in peaks) if peaks else None,
        "reserved_bytes": max(reserved) if reserved else None,
    }


def weights_read(model: Any) -> int:
    """Bytes of the weights that a decode step reads: all, but of the input embedding a few rows, unless it is tied."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    return sum(int(p.nbytes) for p in model.parameters()) - (0 if tied else int(embedding.nbytes))
