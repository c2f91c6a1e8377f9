"""The public functions, re-exported by `kvbench`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from functools import cache as remember
from typing import TYPE_CHECKING, Any

from kvbench.engine.variant import Generation, Variant
from kvbench.methods.load import load
from kvbench.methods.method import Method
from kvbench.paths import conf_dir
from kvbench.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvbench.engine.plain import Compressed
    from kvbench.models import Loaded

VariantLike = Variant | tuple[str | Method, int | float | None]

__all__ = ["Generation", "Variant", "compressed", "generate", "load_method", "load_model"]


def load_method(name: str, **overrides: Any) -> Method:
    """The method of conf/method/<name>.yaml with its dials set to `overrides`.

    A model's hints are applied on the command line, where the model is known; here pass them yourself, e.g.
    `kernel_size=21` for SmolLM2 (`load_model(...).hints`).

    Raises:
        ValueError: unknown method or dial, wrong type, impossible value; one line naming the override.
    """
    return load(conf_dir() / "method", name, **overrides)


def load_model(name: str, **overrides: Any) -> Loaded:
    """The model of conf/model/<name>.yaml: `.model`, `.tokenizer` and how it was loaded.

    Raises:
        ValueError: unknown model or setting, or weights that cannot be had; one line with the remedy.
    """
    from omegaconf import OmegaConf

    from kvbench.common.suggest import did_you_mean
    from kvbench.config import options
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
    return load_model_(ModelSpec.from_node({str(k): v for k, v in config.items()} | overrides))


def as_variant(variant: VariantLike, load: Callable[[str], Method] = load_method) -> Variant:
    """A variant from a pair (method or its name, budget)."""
    if isinstance(variant, Variant):
        return variant
    method, budget = variant
    return _variant(load(method) if isinstance(method, str) else method, budget)


def _variant(method: Method, budget: int | float | None) -> Variant:
    if budget is not None and not method.evicts:
        raise ValueError(f"budget={budget}: {method.name} keeps every token, give None")
    return Variant(method, budget)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str | Sequence[int] | Prompt],
    variants: Sequence[VariantLike],
    *,
    max_new_tokens: int = 64,
    stop_ids: Iterable[int] | None = None,
    question: str = "aware",
    cache: str = "ragged",
    kernel: str = "auto",
    graph: str = "auto",
    max_rows: int = 64,
    max_prompts: int = 1,
    progress: bool = False,
) -> list[list[Generation]]:
    """Greedy generation of every prompt under every variant, with one prefill per prompt.

    Args:
        model, tokenizer: a causal language model of transformers with full attention, and its tokenizer.
        prompts: strings are encoded as they are, with the tokenizer's special tokens and without a chat template;
            sequences of ids are taken as they are; `kvbench.prompts.render` makes chat prompts with a context to
            compress and a question.
        variants: `Variant`s or pairs (method, budget), e.g. ("snapkv", 128), ("ada_snapkv", 0.2), ("fullkv", None).
        stop_ids: for prompts that bring none of their own; the model's end-of-sequence ids by default.
        question: "aware" compresses the whole prompt, "agnostic" the context alone (needs rendered prompts).
        cache: "ragged" saves memory, "masked" simulates.
        kernel: what attends to the ragged cache: auto, cuda, flash_attn, cpu, sdpa or torch.
        graph: decode by CUDA graphs: auto (where that can be done), true or false.
        max_rows: rows (prompt x variant) that decode together; a prompt with more variants is prefilled again for
            the rest.
        max_prompts: prompts that may share a batch; more are faster and hold more caches at a time.
        progress: show a progress bar over prompts.

    Returns:
        A list per prompt with one `Generation` per variant.

    Raises:
        ValueError: an impossible budget on a prompt, an unknown method, no variants, a kernel that cannot run here.
    """
    from tqdm.auto import tqdm

    from kvbench.engine.decode import stream
    from kvbench.engine.variant import Request

    if isinstance(prompts, str):
        raise ValueError("prompts: give a list of prompts, not one string")
    once = remember(load_method)  # a name stands in many variants
    made = [as_variant(v, once) for v in variants]
    if not made or max_rows < 1 or max_prompts < 1:
        raise ValueError("generate needs at least one variant, max_rows=1 and max_prompts=1")
    stops = _eos_ids(model) if stop_ids is None else frozenset(stop_ids)
    rendered = [_as_prompt(p, tokenizer, stops) for p in prompts]
    parts = [range(len(made))[i : i + max_rows] for i in range(0, len(made), max_rows)]
    place = {
        Request(prompt, [made[v] for v in part], max_new_tokens): (p, part)
        for p, prompt in enumerate(rendered)
        for part in parts
    }
    queue = list(reversed(place))

    def draw(in_flight: Sequence[Request]) -> Request | None:
        rows = sum(len(r.variants) for r in in_flight)
        fits = queue and len(in_flight) < max_prompts and rows + len(queue[-1].variants) <= max_rows
        return queue.pop() if fits else None

    outs: list[list[Any]] = [[None] * len(made) for _ in rendered]
    answers = stream(model, tokenizer, draw, cache=cache, kernel=kernel, graph=graph, question=question)
    with closing(answers), tqdm(total=len(place), disable=not progress, desc="prompts") as bar:
        for request, generations in answers:
            p, part = place[request]
            outs[p][part.start : part.stop] = generations
            bar.update()
    return outs


def compressed(
    model: PreTrainedModel,
    method: str | Method,
    budget: int | float | None = None,
    *,
    cache: str = "ragged",
    kernel: str = "auto",
    **dials: Any,
) -> AbstractContextManager[Compressed]:
    """Plain transformers code on a compressed cache.

        with kvbench.compressed(model, "snapkv", budget=128):
            model.generate(**inputs, max_new_tokens=32)

    One unpadded sequence at a time, prefilled in one piece (no `prefill_chunk_size`). Each `generate` call starts a
    new prompt; the handle's `.cache.kept` tells what
    was kept of the latest. Everything is as before when the block ends.
    """
    from kvbench.engine.plain import compressed as compressed_

    made = load_method(method, **dials) if isinstance(method, str) else method
    return compressed_(model, _variant(made, budget), cache=cache, kernel=kernel)


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    config = model.generation_config
    eos = None if config is None else config.eos_token_id
    return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)


def _as_prompt(
    prompt: str | Sequence[int] | Prompt, tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]
) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    ids = tuple(int(i) for i in ids)
    text = prompt if isinstance(prompt, str) else str(tokenizer.decode(list(ids)))
    return Prompt(ids=ids, context_len=len(ids), stop_ids=stops, text=text)
