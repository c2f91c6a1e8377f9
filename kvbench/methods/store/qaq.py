"""QAQ: as many bits for each token as its error allows, outliers in full precision (arXiv 2403.04643)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_between, check_one_of
from kvbench.methods.mixed_bits import LargestAttention, MixedBits, StoreByError


@dataclass(frozen=True)
class QaqHalf(MixedBits):
    """Keys, whose error the norm of a query weighs, or values (`q_norm` None), whose error attention weighs."""

    error: float
    q_norm: float | None

    def summary(self, ctx: LayerContext) -> Tensor | None:
        return None if self.q_norm else ctx.summary(LargestAttention(self.last))

    def limits(self, ctx: LayerContext) -> Tensor:
        n, attention_UT = ctx.num_tokens, self.summary(ctx)
        if attention_UT is not None:
            if self.level == "layer":
                attention_UT = attention_UT.amax(0).expand_as(attention_UT)
            return math.sqrt(12 / n) * self.error / attention_UT
        largest = math.log(n**3 / max(1, n - 1) * self.error**2 + 1) * 12 / (self.q_norm or 1)
        return ctx.k.new_full(ctx.k.shape[:2], math.sqrt(largest), dtype=ctx.dtype)


@dataclass(frozen=True)
class Qaq(StoreByError):
    """Tokens of a prompt with bits of their own, set once; `generated` says whether those that follow get `most`."""

    error: float = 1.0  # target error of the layer's output
    least: int = 2
    most: int = 4
    last: int = 5  # last queries whose largest attention to a token counts
    outliers: float = 0.01  # share of the numbers of a token
    q_norm: float = 300.0
    symmetric: bool = False
    generated: str = "plain"
    level: str = "head"

    def __post_init__(self) -> None:
        ranges = {"error": (1e-9, 1e9), "q_norm": (1e-9, 1e9), "last": (1, 4096), "outliers": (0, 0.5), "most": (1, 16)}
        for name, (low, high) in (ranges | {"least": (0, self.most)}).items():
            check_between(self, name, low, high)
        check_one_of(self, "level", ("head", "layer"))
        check_one_of(self, "generated", ("plain", "encoded") if self.level == "head" else ("plain",))

    @property
    def halves(self) -> tuple[QaqHalf, QaqHalf]:
        same = self.least, self.most, self.outliers, self.symmetric, self.generated, self.last, self.level, self.error
        return QaqHalf(*same, self.q_norm), QaqHalf(*same, None)
