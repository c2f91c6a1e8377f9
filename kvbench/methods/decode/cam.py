"""CaM (Zhang et al. 2024, ICML): the values of tokens that leave are merged into those that follow them.

Shape suffixes: as in `kvbench.methods.decoding`; N tokens that leave, M tokens that take over something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.fields import check_at_least
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class MergeIntoNext(AccumulateAndEvict):
    """H2O whose tokens do not leave without a trace.

    A token that leaves is merged with a probability: its accumulated attention, relative to the mean of the tokens that
    follow it. Then its value, in equal parts, is added to the values of these.

    Args:
        merge_budget: most tokens that take over a value.
    """

    merge_budget: int = 32
    merges: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "merge_budget", 1)

    def shares(self, slots: Slots, leaving: Leaving) -> Shares:
        """Return equal shares of the values that are merged."""
        into_BUNM, exists_BUNM = leaving.followers(slots.pos_BUC, min(self.merge_budget, slots.pos_BUC.shape[2]))
        count_BUN = exists_BUNM.sum(-1).clamp(min=1)
        of_BUNM = slots.state_BUC.gather(2, into_BUNM.flatten(2)).view_as(exists_BUNM).masked_fill(~exists_BUNM, 0)
        ratio_BUN = slots.state_BUC.gather(2, leaving.column_BUN) / (of_BUNM.sum(-1) / count_BUN)
        chance_BUN = ratio_BUN.nan_to_num(0, posinf=1).clamp(0, 1)
        merged_BUN = slots.uniform(leaving.column_BUN) < chance_BUN
        return Shares(into_BUNM, (merged_BUN / count_BUN)[..., None] * exists_BUNM)
