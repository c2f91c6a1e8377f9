"""The public functions, re-exported by `kvbench`."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import cache as remember
from typing import TYPE_CHECKING, Any, Protocol

from kvbench.common.paths import conf_dir
from kvbench.engine.variant import Generation, Variant
from kvbench.methods.allowance import allowed, check_bytes
from kvbench.methods.budgets import ByteShare
from kvbench.methods.dials import as_plain_number
from kvbench.methods.load import load
from kvbench.methods.method import Method
from kvbench.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvbench.engine.plain import Compressed
    from kvbench.models import Loaded

Budget = int | float | str | None
VariantLike = Variant | tuple[str | Method, Budget]


class _Array(Protocol):
    """A tensor, or an array of numpy."""

    def tolist(self) -> Any: ...


PromptLike = str | Prompt | Sequence[int] | Sequence[Sequence[int]] | _Array | Mapping[str, object]
"""Text, a rendered prompt, token ids, or the encoding that a tokenizer returns."""

__all__ = ["Generation", "Variant", "compressed", "generate", "load_method", "load_model"]


def load_method(name: str, model: Loaded | PreTrainedModel | None = None, /, **overrides: object) -> Method:
    """Return the method of conf/method/<name>.yaml with its dials set to `overrides`.

    Args:
        model: what `load_model` returned, or its `.model`. The method then has the defaults that it has with this model
            on the command line: hints such as kernel_size=21 for SmolLM2, or the table of head scores for headkv.

    Raises:
        ValueError: unknown method or dial, wrong type, impossible value; one line naming the override.
    """
    from kvbench.models import described

    return load(conf_dir() / "method", name, described(model), **overrides)


def load_model(name: str, **overrides: object) -> Loaded:
    """Return the model of conf/model/<name>.yaml: `.model`, `.tokenizer` and how it was loaded.

    Raises:
        ValueError: unknown model or setting, or weights that are not available; one line with the remedy.
    """
    from omegaconf import OmegaConf

    from kvbench.common.suggest import did_you_mean
    from kvbench.config import check_hints, options
    from kvbench.models import ModelSpec
    from kvbench.models import load as load_model_

    files = options("model")
    if name not in files:
        raise ValueError(f"model={name}: no such model.{did_you_mean(name, files)}")
    config = OmegaConf.to_container(OmegaConf.load(files[name]))
    assert isinstance(config, dict)
    for key in overrides:
        if key not in config:
            raise ValueError(f"model.{key}={overrides[key]}: no such setting.{did_you_mean(key, map(str, config))}")
    node = {str(k): v for k, v in config.items()} | overrides
    spec = ModelSpec.from_node(node)
    check_hints(node)
    return load_model_(spec)


def as_variant(variant: VariantLike, load: Callable[[str], Method] = load_method) -> Variant:
    """Return a variant from a pair (method or its name, budget).

    Raises:
        ValueError: no pair, no such method, or a budget for a method that keeps every token.
    """
    if isinstance(variant, Variant):
        return _variant(variant.method, variant.budget)
    if not isinstance(variant, Sequence) or isinstance(variant, str) or len(variant) != 2:
        raise ValueError(f'variants: {variant!r} is no pair; give a list of pairs such as [("snapkv", 128)]')
    method, budget = variant
    return _variant(load(method) if isinstance(method, str) else method, budget)


def _variant(method: Method, budget: Budget | ByteShare) -> Variant:
    asked = Variant(method, as_plain_number(budget))
    check_bytes(method, asked.budget)
    if budget is not None and not method.takes(asked.budget):
        keeps = "decides by itself how many tokens stay" if method.evicts else "keeps every token"
        raise ValueError(f"budget={budget}: {method.name} {keeps}, give None")
    return asked


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[PromptLike] | Mapping[str, object],
    variants: Sequence[VariantLike],
    *,
    max_new_tokens: int = 64,
    stop_ids: Iterable[int] | None = None,
    max_length: int | None = None,
    question: str = "aware",
    cache: str = "ragged",
    kernel: str = "auto",
    graph: str = "auto",
    fused: str = "auto",
    max_rows: int = 64,
    max_prompts: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> list[list[Generation]]:
    """Generate greedily, every prompt under every variant, with one prefill per context.

    Before the first prompt, the model's answers to a short text are compared with those of the engine, once per
    process. Layers with a sliding window or chunks keep them whole; budgets count over the other layers.

    Args:
        model, tokenizer: a causal language model of transformers, with or without PEFT's adapters, and its tokenizer.
        prompts: strings are encoded with the tokenizer's special tokens and without a chat template. Ids
            are used unchanged: as a list, a tensor, an array, or as the tokenizer returns them; padding is
            removed. `kvbench.prompts.render` makes chat prompts with a context to compress and a question.
        variants: `Variant`s or pairs (method, budget), e.g. ("snapkv", 128), ("ada_snapkv", 0.2), ("fullkv", None), or
            a share of the full cache's bytes: ("ada_snapkv+kivi", "0.1B"). A method given by name has the defaults of
            `load_method(name, model)`.
        stop_ids: for prompts without stop ids of their own; the model's end-of-sequence ids by default.
        max_length: tokens that a prompt and its answer may have together; by default the model's own limit.
        question: "aware" compresses the whole prompt, "agnostic" the context alone (needs rendered prompts). Several
            questions on the same context, in tokens, share its prefill and compression.
        cache: "ragged" saves memory, "masked" simulates.
        kernel: the backend that attends to the ragged cache: auto, cuda, flash_attn, cpu, sdpa or torch.
        graph: decode by CUDA graphs: auto (if possible), true or false.
        fused: decode steps with our own ops for RMSNorm, RoPE and SiLU: auto (if possible), true or false.
            The weights of the model's linear modules may move in memory.
        max_rows: rows (prompt x variant) that decode together; a context with more of them is prefilled again for
            the rest.
        max_prompts: contexts that may share a batch; more are faster and hold more caches at a time.
        seed: for methods that draw random numbers.
        progress: show a progress bar over prompts.

    Returns:
        A list per prompt with one `Generation` per variant. A row whose logits are no finite numbers has an `error`.

    Raises:
        ValueError: a model that the engine cannot run, a prompt that it cannot answer, an impossible budget on a
            prompt, an unknown method, no variants, a kernel that cannot run here. One line; nothing was computed.
    """
    from tqdm.auto import tqdm

    from kvbench.engine.caches import cache_shape
    from kvbench.engine.decode import stream
    from kvbench.engine.limits import RequestLimits, check_methods
    from kvbench.engine.probe import checked_plan
    from kvbench.engine.variant import Request, context_key
    from kvbench.engine.wrapped import unwrapped

    model = unwrapped(model)
    if tokenizer is None:
        raise ValueError(f"tokenizer={tokenizer!r}: give the tokenizer of the model")
    once = remember(lambda name: load_method(name, model))  # many variants name the same method
    asked = [as_variant(v, once) for v in variants]
    if not asked:
        raise ValueError("variants: give at least one")
    for name, count in (("max_rows", max_rows), ("max_prompts", max_prompts), ("max_new_tokens", max_new_tokens)):
        if count < 1:
            raise ValueError(f"{name}={count}: must be at least 1")
    stops = _eos_ids(model) if stop_ids is None else frozenset(stop_ids)
    rendered = [_as_prompt(p, tokenizer, stops, number) for number, p in enumerate(_each_prompt(prompts))]
    plan = checked_plan(model)
    check_methods(plan, (variant.method for variant in asked))
    limits, shape = RequestLimits(model, plan, max_length), cache_shape(model)
    for number, prompt in enumerate(rendered):
        span = prompt.context_len if question == "agnostic" else len(prompt.ids)
        error = limits.error(prompt.ids, max_new_tokens, span)
        if error is not None:
            raise ValueError(f"prompts[{number}]: {error}")
        for variant in asked:
            method = variant.method.with_template(min(prompt.template_len, span))
            allowed(method, variant.budget, span, shape)  # raises if the budget is impossible on this prompt
    contexts: dict[Hashable, list[int]] = {}
    for p, prompt in enumerate(rendered):
        contexts.setdefault(context_key(prompt, question), []).append(p)
    places: dict[Request, list[tuple[int, int]]] = {}
    for group in contexts.values():
        cells = [(p, v) for v in range(len(asked)) for p in group]
        for begin in range(0, len(cells), max_rows):
            part = cells[begin : begin + max_rows]
            places[Request([(rendered[p], asked[v]) for p, v in part], max_new_tokens, seed)] = part
    queue = list(reversed(places))

    def draw(in_flight: Sequence[Request]) -> Request | None:
        rows = sum(len(r.rows) for r in in_flight)
        fits = queue and len(in_flight) < max_prompts and rows + len(queue[-1].rows) <= max_rows
        return queue.pop() if fits else None

    outs: list[list[Any]] = [[None] * len(asked) for _ in rendered]
    answers = stream(
        model,
        tokenizer,
        draw,
        cache=cache,
        kernel=kernel,
        graph=graph,
        fused=fused,
        question=question,
        max_length=max_length,
    )
    with closing(answers), tqdm(total=len(places), disable=not progress, desc="contexts") as bar:
        for request, generations in answers:
            for (p, v), generation in zip(places[request], generations, strict=True):
                outs[p][v] = generation
            bar.update()
    return outs


def compressed(
    model: PreTrainedModel,
    method: str | Method,
    budget: Budget = None,
    *,
    cache: str = "ragged",
    kernel: str = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **dials: object,
) -> AbstractContextManager[Compressed]:
    """Run plain transformers code on a compressed cache.

        with kvbench.compressed(model, "snapkv", budget=128):
            model.generate(**inputs, max_new_tokens=32)

    One unpadded sequence at a time, prefilled in one piece (no `prefill_chunk_size`), without beams and assisted
    decoding. Pieces are refused, but for one case that looks like an answer: where a second piece ends the prompt with
    a single token, as 200 tokens in pieces of 199, this token counts as generated and is not compressed.
    Each `generate` call starts a new prompt, so it takes no `past_key_values`. The handle's `.cache.kept` counts the
    kept tokens of the latest.
    The model is unchanged when the block ends.

    Args:
        tokenizer: for methods that read tokens.
        dials: the method's dials, if it is given by name. The others have the defaults of `load_method(name, model)`.

    Raises:
        ValueError: a model that the engine cannot run or that is in a wrapper, an unknown method, an impossible budget,
            or a block that never called the model.
    """
    from kvbench.engine.plain import compressed as compressed_
    from kvbench.engine.wrapped import unwrapped

    if unwrapped(model) is not model:
        raise ValueError(
            f"kvbench.compressed: {type(model).__name__} wraps the model, and its calls can skip kvbench's hooks; give "
            "model.get_base_model(), and call that inside the block"
        )
    loaded = load_method(method, model, **dials) if isinstance(method, str) else method
    return compressed_(model, _variant(loaded, budget), cache=cache, kernel=kernel, tokenizer=tokenizer)


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    config = model.generation_config
    eos = None if config is None else config.eos_token_id
    return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)


def _each_prompt(prompts: Iterable[PromptLike] | Mapping[str, object]) -> Iterable[PromptLike]:
    """Return the prompts of a list, or the rows of a tokenizer's encoding of several texts."""
    if isinstance(prompts, str):
        raise ValueError("prompts: give a list of prompts, not one string")
    if not isinstance(prompts, Mapping):
        return prompts
    rows = _listed(prompts.get("input_ids"))
    if not all(isinstance(row, Sequence) for row in rows):
        return [prompts]
    mask = prompts.get("attention_mask")
    masks = [None] * len(rows) if mask is None else _listed(mask)
    return [{"input_ids": ids, "attention_mask": row} for ids, row in zip(rows, masks, strict=True)]


def _as_prompt(
    prompt: PromptLike, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int], number: int = 0
) -> Prompt:
    """Return a prompt from text, ids or a tokenizer's encoding. Raises ValueError for an empty or unclear one."""
    if isinstance(prompt, Prompt):
        return prompt
    encoded = tokenizer(prompt) if isinstance(prompt, str) else prompt
    mask = None
    if isinstance(encoded, Mapping):
        mask, encoded = encoded.get("attention_mask"), encoded.get("input_ids")
    row, shown = _one_row(_listed(encoded)), None if mask is None else _one_row(_listed(mask))
    if shown is not None and len(shown) == len(row):
        row = [i for i, seen in zip(row, shown, strict=True) if seen]
    ids = [int(i) for i in row if not isinstance(i, bool) and isinstance(i, numbers.Integral)]
    if encoded is None or len(ids) < len(row):
        raise ValueError(f"prompts[{number}]: must be text or integer token ids, one row of them")
    if not ids:
        raise ValueError(f"prompts[{number}]: has no tokens")
    if min(ids) < 0:
        raise ValueError(f"prompts[{number}]: token id {min(ids)} is not in the model's vocabulary")
    text = prompt if isinstance(prompt, str) else str(tokenizer.decode(ids))
    return Prompt(ids=tuple(ids), context_len=len(ids), stop_ids=stops, text=text)


def _listed(values: object) -> list[object]:
    """Return a sequence, tensor or array as a list; [None] for anything else."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    return list(plain) if isinstance(plain, Sequence) else [None]


def _one_row(rows: list[object]) -> list[object]:
    """Return the only row of a batch of one; return other ids unchanged."""
    return list(rows[0]) if len(rows) == 1 and isinstance(rows[0], Sequence) else rows
