"""The scores that a decode step of a probe gives to attention heads: HeadKV-R and HeadKV-R2 (arXiv 2410.19258).

Equal to `retrieval_calculate` in Important_Head of FYYFU/HeadKV 0862a09. There a head has the sum over the steps of an
answer, the step included whose token ends it.

Shape suffixes: L layers, H query heads, S keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rule = Callable[[Tensor, int, Sequence[int], tuple[int, int]], Tensor]
"""(attention [L, H, S] of a step, its token, ids of the prompt, begin and end of the needle) to scores [L, H]."""


def retrieval(weight_LHS: Tensor, token: int, ids: Sequence[int], needle: tuple[int, int]) -> Tensor:
    """Return 1 / length of the needle for heads that attend most to a token of the needle equal to the chosen one."""
    begin, end = needle
    top_LH = weight_LHS.argmax(-1)
    equal = [place for place in range(begin, end) if ids[place] == token]
    hit_LH = torch.isin(top_LH, torch.tensor(equal, device=top_LH.device, dtype=top_LH.dtype))
    return hit_LH.double() / (end - begin)


def reasoning(weight_LHS: Tensor, token: int, ids: Sequence[int], needle: tuple[int, int]) -> Tensor:
    """Return the attention to the needle within the most attended tokens, as many as the needle has, per its length."""
    begin, end = needle
    most_LHK, place_LHK = weight_LHS.double().topk(end - begin, dim=-1)
    inside_LHK = (place_LHK >= begin) & (place_LHK < end)
    return (most_LHK * inside_LHK).sum(-1) / (end - begin)


RULES: Mapping[str, Rule] = {"retrieval": retrieval, "reasoning": reasoning}
