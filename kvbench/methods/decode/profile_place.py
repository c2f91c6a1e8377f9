"""PrefixKV's rule for generation with the drop ratios of a profile (Wang et al. 2024, arXiv 2412.03409).

Shape suffixes: as in `kvbench.methods.decoding`; R rows of the profile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.decode.fixed_place import DropAtPlace
from kvbench.methods.layer_profile import LayerProfile


@dataclass(frozen=True)
class DropByProfile(DropAtPlace, LayerProfile):
    """A policy that drops at a fixed place, and keeps the drop ratio of a profile where the prompt has that ratio.

    With allocation=reference a layer keeps the ratio in the profile, not the rounded one that its prompt has. The row
    of the profile is the one that gives what the layer kept. Without such a row, and with allocation=exact, the ratio
    is that of the prompt.
    """

    def __post_init__(self) -> None:
        LayerProfile.__post_init__(self)
        DropAtPlace.__post_init__(self)

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        """Return the share of all tokens seen."""
        own_BU = super().limit(base_BU, steps_B1, layer, span_B1)
        if self.allocation == "exact":
            return own_BU
        ratio_R = torch.tensor([row[layer] for _, row in self.table()], dtype=torch.float64, device=base_BU.device)
        fits_BUR = (ratio_R * span_B1[..., None]).round() == (span_B1 - base_BU)[..., None]
        ratio_BU = ratio_R[fits_BUR.int().argmax(-1)]
        limit_BU = ((span_B1 + steps_B1) * (1 - ratio_BU)).ceil().long()
        return torch.where(fits_BUR.any(-1), limit_BU, own_BU)
