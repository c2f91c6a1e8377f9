"""StreamingLLM in its own form (Xiao et al. 2023, arXiv 2309.17453): a sliding window with positions within the cache.

Shape suffixes: as in `kvbench.methods.decoding`; m sinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.fields import check_at_least
from kvbench.methods.slots import Slots


@dataclass(frozen=True)
class StreamingWindow(SlidingWindow):
    """A sliding window whose tokens have the positions 0, 1, 2, ... of their places in the cache.

    Only distances count for rotary embeddings. Those within the window stay, so the same comes of turning the keys of
    the sinks by a position for every token that leaves: they always lie directly before the window.
    """

    turns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_at_least(self, "sinks", 1)

    def turned(self, slots: Slots) -> Tensor:
        """Return the slots of the sinks."""
        positions_BUC = torch.where(slots.live_BUC, slots.pos_BUC, 2**30)
        return positions_BUC.topk(min(self.sinks, positions_BUC.shape[-1]), dim=-1, largest=False, sorted=True).indices
