"""The record of a sample: what is stored of it, and the check of the budget's promise."""

from __future__ import annotations

import hashlib

from kvbench.benchmarks.base import Benchmark, Sample
from kvbench.common import clock
from kvbench.engine.variant import Generation, Variant
from kvbench.methods.decoding import STATE_BYTES

_TAIL = 400  # characters of a prompt that a record holds: its end, where the question is


def broken_promise(variant: Variant, generation: Generation) -> RuntimeError | None:
    """Return the error of a generation that did not keep the tokens or bytes of its budget; None if it did."""
    heads = sum(map(len, generation.kept))
    kept, span = generation.kept_total, generation.span
    if generation.budget_bytes is not None:
        return _broken_bytes(variant, generation, generation.budget_bytes)
    tokens = None if generation.budget_tokens is None else int(generation.budget_tokens)
    if variant.method.evicts and variant.method.promises != "kept":
        return None  # it decides by itself how many tokens stay; the record shows how many
    if tokens is None or tokens >= span or variant.method.keeps_prompt:
        expected = heads * span
    else:
        expected = heads * tokens
        if not variant.method.exact and kept < heads * span:
            return None  # a reference's rounding: it drifts, and the record shows by how much
    feeds, decoding = variant.method.feed is not None, variant.method.decoding
    if feeds and decoding is not None and tokens is not None:  # what the policy holds after the last chunk
        expected = heads * min(span, decoding.tokens(tokens))
    if kept == expected or (feeds and decoding is not None and 0 < kept - expected <= heads * decoding.buffer):
        return _broken_reads(variant, generation)
    return RuntimeError(
        f"{variant} kept {kept} tokens of {heads * span} over all layers and heads instead of {expected}"
    )


def _broken_bytes(variant: Variant, generation: Generation, promised: int) -> RuntimeError | None:
    """Return the error of a generation whose bytes are not those of its budget; None if they are, to 1 %.

    A method that holds the whole prompt in fewer bytes breaks no promise. One token of one head may be missing.
    """
    heads, kept = sum(map(len, generation.kept)), generation.kept_total
    expected = round((generation.budget_tokens or 0) * heads)
    if kept != expected:
        return RuntimeError(f"{variant} kept {kept} tokens over all layers and heads instead of {expected}")
    held, token = generation.held_bytes, generation.kv_bytes_full // (heads * generation.span) + STATE_BYTES
    if held is None or (kept == heads * generation.span and held <= promised):
        return None
    if abs(held - promised) <= max(0.01 * promised, token):
        return None
    return RuntimeError(f"{variant} holds {held} bytes of {generation.kv_bytes_full} instead of {promised}")


def unused_bytes(generation: Generation) -> str | None:
    """Return a line about bytes of a budget that a prompt cannot use, 1 % or more; None if there are none.

    The checks before the run know no tokens. Those of a store with bits for each of them may take fewer bytes.
    """
    held, promised = generation.held_bytes, generation.budget_bytes
    if held is None or promised is None or held >= 0.99 * promised:
        return None
    if generation.kept_total < sum(map(len, generation.kept)) * generation.span:
        return None  # one token more would be too many
    full = generation.kv_bytes_full
    return (
        f"all {generation.span} tokens take {held / full:.3g} of the full cache's bytes, so the budget of "
        f"{promised / full:.3g} cannot be used"
    )


def _broken_reads(variant: Variant, generation: Generation) -> RuntimeError | None:
    """Return the error of a generation of which a step read more tokens than its budget says; None if none did."""
    read, tokens = generation.read, generation.budget_tokens
    if read is None or tokens is None or read.most <= tokens:
        return None
    return RuntimeError(f"{variant} read {read.most} tokens of a head in one step instead of {tokens} at most")


def answered(
    sample: Sample, variant: Variant, generation: Generation, benchmark: Benchmark, device: str
) -> dict[str, object]:
    """Return the record of a sample with an answer: a line of samples.jsonl.

    Of a method that reads a part of what it keeps, `read_max` is the most tokens that a query head read in a step, in
    the layers to which the budget applies, and `read_mean` the mean over all layers, heads and steps.

    `kv_bytes` is what the kept keys and values take, and `held_bytes` the same together with what a store or a decode
    policy must know of each token; a simulation holds no fewer bytes and records none. Under a budget in bytes,
    `budget_bytes` is what it promises of `held_bytes`, and `budget_tokens` is the mean over all KV heads. `forms` are
    the settings of the store in each layer, where the budget chose them. `chosen` is what the method chose by the
    prompt, such as its task.

    Its `promise` says what the kept tokens were checked against: "kept", the budget; "bytes", those of the budget;
    "read", all tokens, of which the budget is read in each step; "all", all tokens; "measured": nothing, the method
    decides how many stay.
    """
    read = {} if generation.read is None else {"read_max": generation.read.most, "read_mean": generation.read.mean}
    return {
        **_common(sample, "ok", None, device),
        **read,
        **({} if generation.budget_bytes is None else {"budget_bytes": generation.budget_bytes}),
        **({} if generation.forms is None else {"forms": generation.forms}),
        **({"chosen": dict(generation.chosen)} if generation.chosen else {}),
        "prediction": generation.text,
        "token_ids": generation.token_ids,
        "scores": benchmark.score(sample.answers, generation.text, sample.meta),
        "scoring": benchmark.scoring(),
        "prompt_tokens": generation.prompt_tokens,
        "span": generation.span,
        "new_tokens": len(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "budget_tokens": generation.budget_tokens,
        "promise": _promise(variant, generation),
        "kept": generation.kept,
        "kept_mean": generation.kept_mean,
        "kept_max_decode": generation.kept_max,
        "kv_bytes": generation.kv_bytes,
        **({} if generation.held_bytes is None else {"held_bytes": generation.held_bytes}),
        "slack_bytes": generation.slack_bytes,
        "kv_bytes_full": generation.kv_bytes_full,
        "timings": dict(vars(generation.timings)),
        "rows": generation.rows,
        "kernel": generation.kernel,
        "decode_step": generation.decode_step,
    }


def _promise(variant: Variant, generation: Generation) -> str:
    if generation.budget_bytes is not None:
        return "bytes"
    return variant.method.promises or ("measured" if variant.method.evicts else "all")


def unanswered(sample: Sample, status: str, error: str, device: str) -> dict[str, object]:
    """Return the record of a sample without an answer.

    Args:
        status: "oom" if memory ran out, "failed" if the model's output was not finite or the sample did not fit.
        error: the reason, in one line.
    """
    return _common(sample, status, error, device)


def _common(sample: Sample, status: str, error: str | None, device: str) -> dict[str, object]:
    return {
        "id": sample.id,
        "status": status,
        "error": error,
        "prompt_tail": (sample.context[-_TAIL:] + sample.question + sample.answer_prefix)[-_TAIL:],
        "answers": list(sample.answers),
        "meta": dict(sample.meta),
        "context": hashlib.sha256(sample.context.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "device": device,
        "time": clock.now(),
    }
