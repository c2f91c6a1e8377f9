"""Pages by an upper bound of their logits: Quest (Tang et al. 2024, arXiv 2406.10774)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.fields import check_at_least
from kvbench.methods.looking import Look


@dataclass(frozen=True)
class PageBounds(Look):
    """The pages whose keys could match a query best, by the least and the largest number in each channel.

    Ties go to the earlier page. The last page, which holds the newest token, is read only if its bound is high enough,
    as in the published evaluation.

    Args:
        page: tokens of a page.
        dense: first layers of the model, of which every step reads all tokens. Layers with a window count as layers.
        least_pages: pages that are read at least.
    """

    page: int = 16
    dense: int = 2
    least_pages: int = 3

    def __post_init__(self) -> None:
        for field, minimum in (("page", 1), ("dense", 0), ("least_pages", 1)):
            check_at_least(self, field, minimum)

    @property
    def block(self) -> int:
        """Tokens of a page."""
        return self.page

    @property
    def least(self) -> int:
        """Tokens of the pages that are read at least."""
        return self.least_pages * self.page

    def reads_all(self, layer: int) -> bool:
        """Return True for the first layers."""
        return layer < self.dense

    def summary(self, k_NBD: Tensor) -> Tensor:
        """Return [N, 2 D]: the least and the largest number of each channel."""
        return torch.cat([k_NBD.amin(1), k_NBD.amax(1)], -1)

    def choose(self, q_UGD: Tensor, summary_UMX: Tensor, tokens: int) -> Tensor:
        """Return the pages [U, G, C] with the highest bounds."""
        low, high = summary_UMX[:, None].float().chunk(2, -1)
        q = q_UGD[:, :, None].float()
        bound_UGM = torch.maximum(q * low, q * high).sum(-1)
        return bound_UGM.argsort(dim=-1, descending=True, stable=True)[..., : tokens // self.page]
