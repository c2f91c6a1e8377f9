"""The contract of looks: which tokens a decode step reads, where nothing is evicted.

Shape suffixes: U KV heads, G query heads per KV head, N blocks of any KV heads, M blocks of a row, B tokens of a block,
C chosen blocks, X numbers of a summary, D head dimension.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kvbench.methods.base import Part
from kvbench.methods.part_call import part_call


@runtime_checkable
class Look(Part, Protocol):
    """A rule for which blocks of tokens each query head reads in a decode step.

    A row's tokens lie in blocks of `block` tokens in the order of their positions; the last block may be unfinished.
    The cache keeps the summary of every finished block. The budget counts the tokens that a query head reads per step.
    A row with no more tokens than the budget is read as a whole, and so are the prompt and the question.
    """

    @property
    def block(self) -> int:
        """Tokens of a block."""
        ...

    @property
    def least(self) -> int:
        """Tokens that a step reads at least. A budget must not be smaller."""
        return self.block

    def reads_all(self, layer: int) -> bool:
        """Return True for a layer of which every step reads all tokens. The budget does not apply to it.

        Args:
            layer: number of the layer in the model, layers with a window counted.
        """
        return False

    def summary(self, k_NBD: Tensor) -> Tensor:
        """Return [N, X] summaries of the keys of blocks, each of which may have fewer than `block` tokens."""
        ...

    def choose(self, q_UGD: Tensor, summary_UMX: Tensor, tokens: int) -> Tensor:
        """Return the blocks [U, G, C] that each query head reads, every one at most once and no more than `tokens`.

        Args:
            q_UGD: the queries of a step, after RoPE.
            summary_UMX: summaries of all blocks, the unfinished one last.
            tokens: the budget, at least `least` and below the number of tokens.
        """
        ...


def summary_of(look: Look, k_NBD: Tensor) -> Tensor:
    """Return the summaries of blocks by a look, [N, X]."""
    with part_call(f"the look {type(look).__name__}.summary"):
        return look.summary(k_NBD)


def chosen_blocks(look: Look, q_UGD: Tensor, summary_UMX: Tensor, tokens: int) -> Tensor:
    """Return the blocks that a look chooses. A block that is chosen twice would count twice.

    Raises:
        ValueError: they have another type or shape; or, on a CPU, a block is chosen twice or does not exist.
    """
    name = type(look).__name__
    with part_call(f"the look {name}.choose"):
        blocks_UGC = look.choose(q_UGD, summary_UMX, tokens)
    if blocks_UGC.dtype != torch.int64 or blocks_UGC.dim() != 3 or blocks_UGC.shape[:2] != q_UGD.shape[:2]:
        got, must = f"{blocks_UGC.dtype}, {list(blocks_UGC.shape)}", f"{list(q_UGD.shape[:2])} and one dimension more"
        raise ValueError(f"method: {name}.choose returned {got}, must be torch.int64, {must}")
    if blocks_UGC.device.type == "cpu" and blocks_UGC.numel():
        in_order_UGC, blocks = blocks_UGC.sort(-1).values, summary_UMX.shape[1]
        is_twice = bool((in_order_UGC[..., 1:] == in_order_UGC[..., :-1]).any())
        if is_twice or int(in_order_UGC.min()) < 0 or int(in_order_UGC.max()) >= blocks:
            raise ValueError(f"method: {name}.choose must return each block once, of those from 0 to {blocks - 1}")
    return blocks_UGC
