"""Measurement of one cell: prompts of random ids run through the engine that users run, and every step is timed.

A timestamp is taken after every decode step. The engine has waited for the step's tokens by then, so the time between
two timestamps is a whole step: the model, the choice of tokens, and the work of Python around them, as far as the
device waits for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kvbench.engine.decode import stream
from kvbench.engine.probe import checked_plan
from kvbench.engine.variant import Generation, Request
from kvbench.models import Loaded
from kvbench.profile.cells import Cell
from kvbench.profile.limits import prompts_of
from kvbench.profile.peaks import Meter, Peak
from kvbench.profile.settings import ProfileSettings
from kvbench.prompts import Prompt
from kvbench.run.record import broken_promise

_WARM_UP_TOKENS = 8
_SETTLING = 5  # first steps of a batch, which are not typical: the cache is laid out, a graph is recorded


@dataclass(frozen=True)
class Pass:
    """All rows of a cell, once from prompt to last token.

    Attributes:
        generations: one per row.
        first_step_s: seconds of the first decode step, which lays out the cache for the batch; None if there is none.
        step_s: seconds of each step of the whole batch, without the first ones if there are others.
        replayed: share of these steps that a recorded graph ran.
        peak: memory; None if it is not known.
    """

    generations: Sequence[Generation]
    first_step_s: float | None
    step_s: Sequence[float]
    replayed: float
    peak: Peak | None


def measure(
    loaded: Loaded, cell: Cell, settings: ProfileSettings, cfg: Mapping[str, Any], meter: Meter
) -> dict[str, Any]:
    """Run a cell and return its part of the record: times in seconds, memory in bytes.

    Raises:
        RuntimeError: the kept tokens are not those of the budget, a row failed, or another kernel ran; also errors of
            the engine, out of memory included.
    """
    checked_plan(loaded.model)  # its forward calls must not be counted
    vocab = loaded.model.config.get_text_config().vocab_size
    prompts = random_prompts(cell, vocab, int(cfg["seed"]), prompts_of(cell, settings))
    for _ in range(settings.warmup):
        run(loaded, cell, [Request.of(prompts[0], [cell.variant], _WARM_UP_TOKENS)], cfg, meter)
    requests = cell.requests(prompts, settings.new_tokens)
    passes = [run(loaded, cell, requests, cfg, meter) for _ in range(settings.repeats)]
    for generation in passes[0].generations:
        if generation.error is not None:
            raise RuntimeError(generation.error)
        problem = broken_promise(cell.variant, generation)
        if problem is not None:
            raise problem
        if generation.kernel != cell.kernel:
            raise RuntimeError(f"kernel={cell.kernel}: the engine used {generation.kernel}")
    return _times(passes, cell, settings) | _memory(passes, cell, loaded.model, settings)


def random_prompts(cell: Cell, vocab: int, seed: int, count: int | None = None) -> list[Prompt]:
    """Draw prompts of the cell's length, one for each row by default. They are the same for all methods and budgets."""
    prompts = []
    for number in range(cell.batch if count is None else count):
        generator = torch.Generator().manual_seed((seed << 20) + number)
        ids = tuple(torch.randint(vocab, (cell.context,), generator=generator).tolist())
        prompts.append(Prompt(ids, context_len=len(ids), stop_ids=frozenset(), text=""))  # nothing ends an answer
    return prompts


def run(loaded: Loaded, cell: Cell, requests: Sequence[Request], cfg: Mapping[str, Any], meter: Meter) -> Pass:
    """Answer the requests, all rows in one batch."""
    queue = list(reversed(requests))
    calls, prefilled, first, stamps, by_graph = 0, False, None, [], []

    def called(tokens: int) -> None:
        nonlocal calls, prefilled
        if not prefilled and calls >= len(requests) and tokens == 1:  # the first step, which never runs as a graph
            prefilled = True
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
        loaded.engine_tokenizer,
        lambda _: queue.pop() if queue else None,
        cache=cfg["engine"]["cache"],
        kernel=cell.kernel,
        graph=str(cfg["engine"]["graph"]).lower(),
        fused=str(cfg["engine"]["fused"]).lower(),
        on_step=stepped,
    )
    with _forward_calls(loaded.model, called), closing(answers):
        generations = [generation for _, of_request in answers for generation in of_request]
    peak = meter.read()
    skip = _SETTLING if len(stamps) > 2 * _SETTLING else 1
    steps, graphs = np.diff(stamps)[skip - 1 :].tolist(), by_graph[skip:]
    return Pass(generations, first, steps, statistics.mean(graphs) if graphs else 0.0, peak)


@contextmanager
def _forward_calls(model: Any, called: Callable[[int], None]) -> Iterator[None]:
    """Call `called` with the tokens of a row before every forward call, inside this context.

    All calls begin with the embeddings, fused ones too. One per prompt is the prefill; a method may add its own.
    """
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: called(args[0].shape[-1]))
    try:
        yield
    finally:
        handle.remove()


def _times(passes: Sequence[Pass], cell: Cell, settings: ProfileSettings) -> dict[str, Any]:
    """Return medians over rows, steps and passes."""
    timings = [generation.timings for single in passes for generation in single.generations]
    mean = statistics.median(t.tpot_s for t in timings if t.tpot_s is not None)
    steps = [seconds for single in passes for seconds in single.step_s]
    first = [single.first_step_s for single in passes if single.first_step_s is not None]
    tpot = statistics.median(steps) if steps else mean
    low, high = np.percentile(steps, [10, 90]).tolist() if steps else (None, None)
    prefill = statistics.median(t.prefill_s for t in timings)
    compress = statistics.median(t.compress_s for t in timings)
    return {
        "prefill_s": prefill,
        "compress_s": compress,
        "ttft_s": statistics.median(t.ttft_s for t in timings),
        "tpot_s": tpot,
        "tpot_low_s": low,
        "tpot_high_s": high,
        "tpot_mean_s": mean,
        "first_step_s": statistics.median(first) if first else None,
        "steps": len(steps),
        "steps_by_graph": statistics.mean(single.replayed for single in passes),
        "decode_step": passes[0].generations[0].decode_step,
        "tokens_per_s": cell.batch / tpot,
        **(
            {}
            if cell.pool is None
            else {"request_tokens_per_s": _request_rate(prefill + compress, tpot, cell, settings)}
        ),
    }


def _request_rate(prompt_s: float, tpot_s: float, cell: Cell, settings: ProfileSettings) -> float:
    """Return the tokens per second of whole requests: of each row's own prompt, one after the other, and of decoding.

    The prompt's last logits give the first token of an answer.
    """
    seconds = cell.batch * prompt_s + (settings.new_tokens - 1) * tpot_s
    return cell.batch * settings.new_tokens / seconds


def _memory(passes: Sequence[Pass], cell: Cell, model: Any, settings: ProfileSettings) -> dict[str, Any]:
    """Return the bytes of the cache (over all rows), of the weights, at the peaks (over all passes), and per step."""
    rows = passes[0].generations
    kept, full = sum(row.kv_bytes for row in rows), sum(row.kv_bytes_full for row in rows)
    grown = 0 if cell.variant.method.decode is not None else full // rows[0].span * settings.new_tokens // 2
    peaks = [single.peak for single in passes if single.peak is not None]
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
    """Return the bytes of the weights that a decode step reads.

    These are all weights, but the input embedding counts only if it is tied: a step reads a few of its rows.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    return sum(int(p.nbytes) for p in model.parameters()) - (0 if tied else int(embedding.nbytes))
