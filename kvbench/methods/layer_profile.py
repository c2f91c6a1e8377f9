"""Tables of drop ratios per layer, as PrefixKV (arXiv 2412.03409) computes them offline: by one search per prompt.

A table is a JSON object {"0.5": [drop ratio of every layer], ...}: for each share of the prompt that leaves, the share
that leaves each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor

from kvbench.common.kinds import is_number
from kvbench.methods.base import Part
from kvbench.methods.fields import InvalidField
from kvbench.methods.files import DialFile, json_object

TOLERANCE = 5  # tokens by which the search may miss its target, as in the reference
Table = tuple[tuple[float, tuple[float, ...]], ...]
"""(Share of the prompt that leaves, drop ratio of every layer), by ascending share, from 0 to 1."""


def equal_mass_drops(mass_LT: Tensor, target: float, most: int) -> list[int]:
    """Return tokens to drop of every layer, about `target` in total, so that all keep the same share of their mass.

    Args:
        mass_LT: importance of every token in every layer.
        target: tokens to drop, summed over the layers.
        most: tokens that a layer may drop.
    """
    mass_LT = mass_LT.sort(dim=-1, descending=True).values
    cdf_LT = (mass_LT / mass_LT.sum(-1, keepdim=True)).cumsum(-1)
    low, high, dropped = 0.0, 1.0, [0] * len(cdf_LT)
    for _ in range(60):
        share = (low + high) / 2
        kept_L1 = torch.searchsorted(cdf_LT, cdf_LT.new_full((len(cdf_LT), 1), share)) + 1
        dropped = (most - kept_L1).clamp(min=0).flatten().tolist()
        if abs(sum(dropped) - target) < TOLERANCE:
            break
        low, high = (low, share) if sum(dropped) < target else (share, high)
    return dropped


def drop_ratios(mass_LT: Tensor, ratio: float, protected: int) -> list[float]:
    """Return the share that leaves every layer of one prompt, if `ratio` of all its tokens leave.

    Args:
        mass_LT: importance of every token in every layer.
        protected: tokens of a layer that always stay.
    """
    layers, tokens = mass_LT.shape
    target = layers * tokens * ratio
    dropped = equal_mass_drops(mass_LT, target, tokens - protected)
    total = sum(dropped)
    return [int(count * target / total) / tokens if total else 0.0 for count in dropped]


@dataclass(frozen=True)
class LayerProfile(Part):
    """A part with a table of drop ratios for all compressed layers of the model.

    Args:
        profile: JSON file {"share that leaves": [drop ratio of every layer]}.

    Raises:
        InvalidField: the file is no such table.
    """

    profile: DialFile

    def __post_init__(self) -> None:
        self.table()

    def check_model(self, *, layers: int, heads: int, query_heads: int) -> None:
        """Raise InvalidField if the table is that of a model with another number of layers."""
        own = len(self.table()[0][1])
        if own != layers:
            raise InvalidField("profile", self.profile, f"has ratios for {own} layers, but the model has {layers}")

    def table(self) -> Table:
        """Return the table."""
        try:
            return read_profile(self.profile.text)
        except ValueError as error:
            raise InvalidField("profile", self.profile, f"is no table of drop ratios ({error})") from None

    def ratios(self, tokens: int, span: int) -> list[float]:
        """Return the drop ratio of every layer under a budget: as in the table, or between its two nearest rows."""
        table = self.table()
        for share, ratios in table:
            if int((1 - share) * span + 1e-9) == tokens:
                return list(ratios)
        wanted = 1 - tokens / span
        (low, below), (high, above) = next(pair for pair in pairwise(table) if wanted <= pair[1][0])
        weight = (wanted - low) / (high - low)
        return [(1 - weight) * a + weight * b for a, b in zip(below, above, strict=True)]


@lru_cache(maxsize=8)
def read_profile(text: str) -> Table:
    """Return the table in a JSON text, with rows for 0 and 1, at which nothing and everything leaves.

    Raises:
        ValueError: the text is no table of drop ratios.
    """
    content = json_object(text, "ratios")
    rows: dict[float, tuple[float, ...]] = {}
    for key, value in content.items():
        try:
            share = float(key)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            raise ValueError(f"{key!r} must be the share that leaves, in [0, 1)")
        if not isinstance(value, list) or not value or not all(map(_is_ratio, value)):
            raise ValueError(f"{key!r} must be a list of ratios in [0, 1], one for each layer")
        rows[share] = tuple(map(float, value))
    lengths = {len(ratios) for ratios in rows.values()}
    if len(lengths) > 1:
        raise ValueError(f"lists of {min(lengths)} and of {max(lengths)} layers")
    layers = lengths.pop()
    return tuple(sorted(({0.0: (0.0,) * layers} | rows | {1.0: (1.0,) * layers}).items()))


def _is_ratio(value: object) -> TypeGuard[float]:
    return is_number(value) and 0 <= value <= 1
