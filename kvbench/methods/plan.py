"""The plan that a selection hands to the decode policy: how each KV head treats the tokens that follow.

Shape suffixes: U KV heads, T tokens of the compressed span, X numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

NO_LIMIT = 2**30
"""The limit of a head that drops nothing."""


def _no_ids() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class Plan:
    """The policies of one layer's KV heads while generating, chosen by `Select.plan`.

    Attributes:
        numbers_UX: int32. The first is an index of `Select.policies`, the others have a meaning to the method alone.
        limit_U: tokens that each head may hold after a step, apart from the generated tokens that it pins.
        pinned_UT: True for tokens of the prompt that never leave.
        pins_U: True for heads that also pin generated tokens with an id in `pin_ids`; they never leave and do not
            count towards the limit.
        pin_ids: sorted ids, on the CPU.
    """

    numbers_UX: Tensor
    limit_U: Tensor
    pinned_UT: Tensor
    pins_U: Tensor
    pin_ids: Tensor = field(default_factory=_no_ids)
