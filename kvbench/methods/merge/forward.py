"""The merge of CaM (Zhang et al. 2024, ICML) over a prompt: values are handed on to the tokens that follow.

Shape suffixes: U KV heads, T tokens, D head dimension; N = T - window tokens that may give their value.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import LayerContext, Merge, Score
from kvbench.methods.fields import check_at_least, check_between, check_one_of
from kvbench.methods.scores.window_mean import WindowMean


@dataclass(frozen=True)
class ValuesForward(Merge):
    """A merge in the order of the prompt: tokens add equal parts of their values to the `window` tokens after them.

    A token does so with a probability: its attention, relative to the most that one of the first tokens, itself, or one
    of the `window - 1` after it gets. Its value then holds what it was given before. The last tokens give nothing.

    Args:
        window: last queries whose attention counts, and tokens that take over a value.
        start: share of the prompt at its beginning that gives nothing.
        reduce: how the query heads of a KV head are combined: mean, max or sum.
        givers: "all": kept tokens as well, as in KVCache-Factory; "dropped": only tokens that do not stay.
    """

    window: int = 8
    start: float = 0.1
    reduce: str = "mean"
    givers: str = "all"
    draws = True

    def __post_init__(self) -> None:
        check_at_least(self, "window", 1)
        check_between(self, "start", 0, 1)
        check_one_of(self, "givers", ("all", "dropped"))

    @property
    def scores(self) -> tuple[Score, ...]:
        return (WindowMean(self.window, self.reduce),)

    def __call__(self, ctx: LayerContext, keep_UT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's keys, and the merged values [U, T, D]."""
        first, size = math.ceil(self.start * ctx.num_tokens), self.window
        draw_UT = ctx.memo(("draws", self), lambda: torch.rand(keep_UT.shape, generator=ctx.generator(self)))
        attention_UT, v_UTD = ctx.score(self.scores[0]), ctx.v.to(ctx.dtype, copy=True)
        if ctx.num_tokens > size:
            most_UN = attention_UT.unfold(1, size, 1).amax(-1)[:, :-1]
            most_UN = most_UN.maximum(attention_UT[:, :first].amax(1, keepdim=True)) if first else most_UN
            chance_UN = (attention_UT[:, :-size] / most_UN).nan_to_num(0, posinf=1)
            gives_UN = draw_UT[:, :-size].to(chance_UN.device) < chance_UN
            gives_UN &= ~keep_UT[:, :-size] | (self.givers == "all")
            gives_UN[:, :first] = False
            for at in gives_UN.any(0).nonzero().flatten().tolist():
                v_UTD[:, at + 1 : at + 1 + size] += (gives_UN[:, at, None] / size * v_UTD[:, at])[:, None]
        return ctx.k, v_UTD.to(ctx.v.dtype)
