"""Windows of neighbouring tokens, scored as a whole. Shape suffixes: H query heads, N tokens, W windows, S size."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.base import LayerContext, Score
from kvbench.methods.fields import check_at_least
from kvbench.methods.layers.group_pyramid import group_of
from kvbench.methods.scores.groups import add_up
from kvbench.methods.windows import OfWindows


@dataclass(frozen=True)
class WindowScores(OfWindows, Score):
    """The attention of the last queries to a window, by the rule of the prompt's task: the same for all its tokens.

    WindowKV (Zuo et al. 2025, arXiv 2503.17922). `average`: mean over all tokens of the window and all query heads.
    `top_half`: mean over half of a window's tokens, the best of each query head.

    Args:
        shared: layers of a group. The scores of its first layer serve all of them.
    """

    shared: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "shared", 1)

    @property
    def unscored(self) -> int:
        return self.suffix

    @property
    def is_shared(self) -> bool:
        return True

    queries = unscored

    def layer_of(self, layer: int, num_layers: int) -> int:
        return group_of(layer, num_layers, self.shared) * self.shared

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        past = ctx.num_tokens - self.suffix
        mass_HN = add_up(ctx.window_attention(self.suffix)[..., :past], 2).flatten(0, 1)
        missing = -past % self.size  # of the last window
        mass_HWS = F.pad(mass_HN, (0, missing)).unflatten(1, (-1, self.size))
        most = max(1, self.size // 2) if self.rule == "top_half" else self.size
        best_HWS = mass_HWS.topk(most, dim=-1).values if most < self.size else mass_HWS  # missing tokens add 0
        size_W = best_HWS.new_full((best_HWS.shape[1],), most)
        size_W[-1] = min(most, self.size - missing)
        score_W = add_up(add_up(best_HWS, 2), 0) / size_W / len(mass_HN)
        score_N = score_W.repeat_interleave(self.size)[:past]
        return F.pad(score_N, (0, self.suffix)).expand(ctx.num_kv_heads, -1)
