"""Rotary frequencies that depend on a text's length: dynamic NTK scaling, and LongRoPE with its two sets of factors.

transformers keeps such frequencies on the rotary module, so they stay after the text they were computed for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

_STATE = ("inv_freq", "max_seq_len_cached", "attention_scaling")  # of a rotary module, with a prefix per kind of layer


def depends_on_length(model: PreTrainedModel) -> bool:
    """Return True if the frequencies of a forward call depend on its longest row.

    Prompts of such a model must not share a batch: a short one would be answered with the frequencies of a long one.
    """
    return any(kind in ("dynamic", "longrope") for kind, _ in _scalings(model))


def grows_with_length(model: PreTrainedModel) -> bool:
    """Return True if the frequencies adapt to any length, so that a text may exceed the model's trained positions."""
    return any(kind == "dynamic" for kind, _ in _scalings(model))


def switch_length(model: PreTrainedModel) -> int | None:
    """Return the length at which a model changes from short to long frequencies (LongRoPE); None without one."""
    config = model.config.get_text_config()
    for kind, scaling in _scalings(model):
        if kind == "longrope":
            length = scaling.get("original_max_position_embeddings")
            length = length or getattr(config, "original_max_position_embeddings", None)
            return None if length is None else int(length)
    return None


@torch.inference_mode()
def forget_lengths(model: PreTrainedModel) -> None:
    """Return rotary modules with dynamic scaling to their original frequencies.

    Their own forward call does that for a text shorter than the trained positions after a longer one.
    """
    if not grows_with_length(model):
        return
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if not hasattr(module, "max_seq_len_cached") or kinds is None:
            continue
        like = next((b for b in module.buffers() if b.is_floating_point()), None)
        device = torch.device("cpu") if like is None else like.device
        x, position = torch.zeros(1, 1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
        for layer_type in kinds if isinstance(kinds, Mapping) else [None]:
            module(x, position) if layer_type is None else module(x, position, layer_type)
            prefix = "" if layer_type is None else f"{layer_type}_"
            used, original = (getattr(module, f"{prefix}{name}", None) for name in ("inv_freq", "original_inv_freq"))
            if isinstance(used, torch.Tensor) and isinstance(original, torch.Tensor) and used is not original:
                used.copy_(original)  # before 5.5, transformers forgets that it saw the longer text


@contextmanager
def kept_lengths(model: PreTrainedModel) -> Iterator[None]:
    """Restore the rotary frequencies after a block with forward calls for longer texts."""
    held: list[tuple[torch.nn.Module, str, object]] = []
    if depends_on_length(model):
        for module in model.modules():
            if hasattr(module, "rope_type"):
                names = [name for name in {**vars(module), **module._buffers} if name.endswith(_STATE)]
                values = ((name, getattr(module, name)) for name in names)
                held += [(module, n, v.clone() if isinstance(v, torch.Tensor) else v) for n, v in values]
    try:
        yield
    finally:
        for module, name, value in held:
            setattr(module, name, value)


def _scalings(model: PreTrainedModel) -> Iterator[tuple[object, Mapping[str, int | None]]]:
    """Yield kind and parameters of each rotary scaling; models with several kinds of layers have several."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    for scaling in (parameters, *parameters.values()):
        if isinstance(scaling, Mapping) and "rope_type" in scaling:
            yield scaling["rope_type"], scaling
