"""A model's own rotary embedding in each layer, as a function of queries or keys and positions.

Layers may differ: some have other frequencies, and some know no positions (every fourth of SmolLM3). Frequencies are
read from the model's rotary modules; which of them a layer uses, how channels are paired, and how many of them rotate,
is found out by a check. In a prompt of one repeated token every layer computes the same keys at every position, but for
their rotation. So a rotation is a layer's if it turns the first of these keys into the others. Where frequencies depend
on the length of the text, that must hold in a long one too: PhiMoE keeps those of long texts and does not use them.

Shape suffixes: L layers, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.engine.rope import grows_with_length, kept_lengths, switch_length
from kvbench.engine.small_call import small_call
from kvbench.engine.survey import AttentionPlan

# of the check: small, so that frequencies that depend on the length are those of a short text
_POSITIONS = (0, 1, 2, 3, 7, 20, 40)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # of the keys' size; half precisions: 0.03


@dataclass(frozen=True)
class Rotation:
    """A rotation of channel pairs by positions times frequencies.

    Attributes:
        module, buffer: where the frequencies are; a model may change them with the length of its text. Without a
            module, the keys do not rotate.
        interleaved: True if channels 2i and 2i + 1 form a pair; False if i and i + R / 2 do, of R rotated channels.
    """

    module: nn.Module | None
    buffer: str
    interleaved: bool

    def __call__(self, x: Tensor, by: Tensor) -> Tensor:
        """Return x [..., T, D] rotated by [T] further positions."""
        if self.module is None:
            return x
        frequencies: Tensor = getattr(self.module, self.buffer)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        by = torch.as_tensor(by, device=x.device)
        angle = by[..., None].to(wide) * frequencies.to(x.device, wide)
        channels = 2 * angle.shape[-1]
        turned = x[..., :channels].to(wide)
        first, second = turned.unflatten(-1, (-1, 2)).unbind(-1) if self.interleaved else turned.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        pair = first * cos - second * sin, second * cos + first * sin
        turned = torch.stack(pair, -1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        return torch.cat([turned.to(x.dtype), x[..., channels:]], -1)


def find_rotations(model: PreTrainedModel, plan: AttentionPlan) -> tuple[Rotation | None, ...]:
    """Return the rotation of the keys of every layer that is compressed; None where it is unknown."""
    rotations = _rotations_at(model, plan, _POSITIONS)
    trained = switch_length(model)
    if trained is None and grows_with_length(model):
        trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if trained is None:
        return rotations
    with kept_lengths(model):
        in_long = _rotations_at(model, plan, (*_POSITIONS, trained + 40))
    return tuple(short if short == long else None for short, long in zip(rotations, in_long, strict=True))


def _rotations_at(model: PreTrainedModel, plan: AttentionPlan, positions: Sequence[int]) -> tuple[Rotation | None, ...]:
    tolerance, candidates = _TOLERANCE.get(model.dtype, 0.03), list(_candidates(model, plan.head_dim))
    by = torch.tensor(positions)
    return tuple(_matching(k_UTD, by.to(k_UTD.device), candidates, tolerance) for k_UTD in _keys(model, plan, by))


def _matching(k_UTD: Tensor, by: Tensor, candidates: Sequence[Rotation], tolerance: float) -> Rotation | None:
    """Return the rotation that turns the first key of each head into the others; None if it is no candidate."""
    for rotation in candidates:
        error = rotation(k_UTD[:, :1].expand_as(k_UTD), by) - k_UTD
        if float(error.norm() / k_UTD.norm()) <= tolerance:
            return rotation
    return None


def _candidates(model: PreTrainedModel, head_dim: int) -> Iterator[Rotation]:
    """Yield the rotations that a model's frequencies allow."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name and 2 * buffer.numel() <= head_dim:
                yield Rotation(module, name, interleaved=False)
                yield Rotation(module, name, interleaved=True)
    yield Rotation(None, "", interleaved=False)  # layers that know no positions


def _keys(model: PreTrainedModel, plan: AttentionPlan, by: Tensor) -> Tensor:
    """Return the keys [L, U, T, D] of the compressed layers in a prompt of one repeated token, in float32 at least."""
    keys = small_call(model, torch.full_like(by, 2), by).keys
    device = keys[plan.full[0]].device
    wide = (keys[layer].to(device, torch.promote_types(keys[layer].dtype, torch.float32)) for layer in plan.full)
    return torch.stack(list(wide))
