"""Every op of the namespace `kvb` in plain torch: the specification of the kernels, and what a CPU runs.

Shape suffixes: B batch rows, H query heads, U KV heads, G = H / U query heads per KV head, T tokens, S segments of an
arena, S1 = S + 1, R and Q slots of two arenas, M segments of the second, N lanes = B * U (lane b * U + u) or, in
scores, candidate tokens, D head dimension, W window queries, C columns a query may see. In the ops of a decode
step: N tokens, C hidden size, F width of the MLP, O outputs of a product.

Segment s has the slots start_S1[s] .. start_S1[s + 1]. The first length_S[s] of them are live; the others hold
arbitrary values and are never read. The functions take the ops' arguments in the same order. They compute in float32,
or in float64 if the inputs are float64. Those of a decode step round where transformers' functions round.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench_kernels.ops.apportion import apportion
from kvbench_kernels.ops.packed import packed_decode as packed_decode
from kvbench_kernels.ops.weights import decode_weights as decode_weights

QUERY_BLOCK = 256  # queries whose logits are in memory at a time, where all queries of a prompt are needed


def ragged_append(
    k_RD: Tensor,
    v_RD: Tensor,
    start_S1: Tensor,
    length_S: Tensor,
    segment_N: Tensor,
    k_BUTD: Tensor,
    v_BUTD: Tensor,
    status: Tensor,
) -> None:
    """Write the T new tokens of every lane after its segment's live slots, in place; length_S grows by T.

    A segment without room for all of them stays as it is. status[0] becomes 1 + its index, unless it is set already.
    """
    tokens = k_BUTD.shape[2]
    starts, lengths = start_S1.tolist(), length_S.tolist()
    news = zip(k_BUTD.flatten(0, 1), v_BUTD.flatten(0, 1), strict=True)
    for segment, (k_TD, v_TD) in zip(segment_N.tolist(), news, strict=True):
        slot = starts[segment] + lengths[segment]
        if slot + tokens > starts[segment + 1]:
            if not status.item():
                status.fill_(1 + segment)
            continue
        k_RD[slot : slot + tokens] = k_TD
        v_RD[slot : slot + tokens] = v_TD
        length_S[segment] += tokens


def ragged_decode(
    q_BHTD: Tensor,
    k_RD: Tensor,
    v_RD: Tensor,
    start_S1: Tensor,
    length_S: Tensor,
    segment_N: Tensor,
    scaling: float,
    out_BHTD: Tensor,
    workspace: Tensor | None = None,
    settled: bool = False,
) -> None:
    """Attend with the T newest tokens of every lane to its live slots, causally among the new ones; fill `out_BHTD`.

    Token t sees the slots before length - T + t + 1. The output of a token that sees none is 0. The kernels use
    `workspace`; the reference does not. `settled` promises that the stream's previous kernel writes no start, length or
    segment, and no row of k and v, and that all kernels before it have ended when it lets this one start: on a GPU from
    compute capability 9.0 on, ours begins before that one ends.
    """
    batch, heads, tokens, _ = q_BHTD.shape
    kv_heads = len(segment_N) // batch
    group = heads // kv_heads
    dtype = _wide(q_BHTD.dtype)
    starts, lengths = start_S1.tolist(), length_S.tolist()
    for lane, segment in enumerate(segment_N.tolist()):
        row, first = lane // kv_heads, lane % kv_heads * group
        live = slice(starts[segment], starts[segment] + lengths[segment])
        q_GTD = q_BHTD[row, first : first + group].to(dtype)
        visible_T = lengths[segment] - tokens + 1 + torch.arange(tokens, device=q_GTD.device)
        hidden_TC = torch.arange(lengths[segment], device=q_GTD.device) >= visible_T[:, None]
        logits_GTC = (q_GTD @ k_RD[live].to(dtype).T * scaling).masked_fill(hidden_TC, -torch.inf)
        # The softmax of a row of -inf is NaN: such a token sees nothing.
        weight_GTC = logits_GTC.softmax(-1).masked_fill(hidden_TC, 0)
        out_BHTD[row, first : first + group] = (weight_GTC @ v_RD[live].to(dtype)).to(out_BHTD.dtype)


def ragged_append_decode(
    q_BHTD: Tensor,
    k_BUTD: Tensor,
    v_BUTD: Tensor,
    k_RD: Tensor,
    v_RD: Tensor,
    start_S1: Tensor,
    length_S: Tensor,
    segment_N: Tensor,
    scaling: float,
    out_BHTD: Tensor,
    workspace: Tensor | None,
    status: Tensor,
    settled: bool = False,
) -> None:
    """Run `ragged_append`, then `ragged_decode` for the appended tokens."""
    ragged_append(k_RD, v_RD, start_S1, length_S, segment_N, k_BUTD, v_BUTD, status)
    ragged_decode(q_BHTD, k_RD, v_RD, start_S1, length_S, segment_N, scaling, out_BHTD, workspace)


def window_score(
    q_HWD: Tensor, k_UTD: Tensor, lse_HW: Tensor | None, scaling: float, group: str, pool: str, kernel_size: int
) -> Tensor:
    """Score every token before the window by the attention of the window's W tokens, the last of T: [U, T - W].

    The softmax is over all T keys, causal inside the window. The attention is averaged over W, then reduced over the
    group of G query heads, then pooled along the tokens.

    Args:
        lse_HW: log-sum-exp (natural) of each query's scaled logits over the keys it sees; None if it is not known.
        group: reduction over the group: mean, max or sum.
        pool: max, avg (it divides by `kernel_size` at the borders too) or none.
        kernel_size: width of the pooling, odd.
    """
    window, past = q_HWD.shape[1], k_UTD.shape[1] - q_HWD.shape[1]
    logits_UGWT = _logits(q_HWD, k_UTD, past, scaling)
    if lse_HW is None:
        attention_UGWN = logits_UGWT.softmax(-1)[..., :past]
    else:
        lse_UGW1 = lse_HW.to(logits_UGWT.dtype).view(*logits_UGWT.shape[:3], 1)
        attention_UGWN = (logits_UGWT[..., :past] - lse_UGW1).exp()
    mean_UGN = _add_up(attention_UGWN, 2) / window
    if group == "max":
        score_UN = mean_UGN.amax(1)
    else:
        score_UN = _add_up(mean_UGN, 1) / (mean_UGN.shape[1] if group == "mean" else 1)
    return _pool(score_UN, pool, kernel_size)


def row_lse(q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    """Return the log-sum-exp (natural) of every query's scaled logits over the keys up to itself: [H, T]."""
    lse = [logits.logsumexp(-1).flatten(0, 1) for _, logits in _query_blocks(q_HTD, k_UTD, scaling)]
    return torch.cat(lse, 1) if lse else q_HTD.new_zeros(q_HTD.shape[:2], dtype=_wide(q_HTD.dtype))


def column_sums(q_HTD: Tensor, k_UTD: Tensor, lse_HT: Tensor, scaling: float) -> Tensor:
    """Return the causal attention that every key receives from all queries: [H, T]. `lse_HT` is that of `row_lse`."""
    dtype = _wide(q_HTD.dtype)
    sums_HT = torch.zeros(q_HTD.shape[:2], dtype=dtype, device=q_HTD.device)
    for begin, logits_UGTC in _query_blocks(q_HTD, k_UTD, scaling):
        block, seen = logits_UGTC.shape[2:]
        lse_UGT1 = lse_HT[:, begin : begin + block].to(dtype).reshape(*logits_UGTC.shape[:3], 1)
        sums_HT[:, :seen] += (logits_UGTC - lse_UGT1).exp().sum(2).flatten(0, 1)
    return sums_HT


def select(score_UN: Tensor, total: int, floor: float, scope: str) -> tuple[Tensor, Tensor]:
    """Return the keep mask of the best `total` tokens, bool [U, N], and the number kept per head, int32 [U].

    A higher score wins, then the lower head (when a layer is ranked as a whole), then the lower position. NaN is the
    highest score, and -0 equals 0, as in torch's sort.

    Args:
        floor: share of `total` that is split evenly, in [0, 1]; only scope "layer" uses it.
        scope: "head" splits `total` evenly, with remaining tokens to the lower heads. "layer" gives each head as many
            as it holds of the layer's best `total`, mixed with the even split (Ada-KV, arXiv 2407.11550).

    Raises:
        ValueError: there are fewer than `total` tokens.
    """
    heads, candidates = score_UN.shape
    if not 0 <= total <= heads * candidates:
        raise ValueError(f"total={total}: there are {heads} x {candidates} tokens")
    if scope == "head":
        counts = [total // heads + (head < total % heads) for head in range(heads)]
    else:
        best = score_UN.flatten().argsort(descending=True, stable=True)[:total]
        held_U = torch.bincount(best // max(1, candidates), minlength=heads)
        weights = [(1 - floor) * held + floor * total / heads for held in held_U.tolist()]
        counts = apportion(weights, total, limit=candidates)
    count_U = torch.tensor(counts, dtype=torch.int32, device=score_UN.device)
    order_UN = score_UN.argsort(dim=-1, descending=True, stable=True)
    rank_N = torch.arange(candidates, device=score_UN.device)
    chosen_UN = rank_N < count_U[:, None]  # in order of rank
    return torch.empty_like(chosen_UN).scatter_(1, order_UN, chosen_UN), count_U


def ragged_gather(
    k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, k_RD: Tensor, v_RD: Tensor
) -> None:
    """Write the kept tokens of KV head head_S[s] to the slots of segment s, in order; drop what does not fit."""
    starts = start_S1.tolist()
    for segment, head in enumerate(head_S.tolist()):
        begin, capacity = starts[segment], starts[segment + 1] - starts[segment]
        kept = keep_ST[segment].nonzero()[:capacity, 0]
        k_RD[begin : begin + len(kept)] = k_UTD[head, kept]
        v_RD[begin : begin + len(kept)] = v_UTD[head, kept]


def ragged_relayout(
    k_RD: Tensor,
    v_RD: Tensor,
    start_S1: Tensor,
    length_S: Tensor,
    source_M: Tensor,
    start_M1: Tensor,
    k_QD: Tensor,
    v_QD: Tensor,
) -> None:
    """Write the live slots of segment source_M[m] to place m of another arena; drop what does not fit."""
    old_starts, lengths, starts = start_S1.tolist(), length_S.tolist(), start_M1.tolist()
    for place, segment in enumerate(source_M.tolist()):
        live = min(lengths[segment], starts[place + 1] - starts[place])
        old = slice(old_starts[segment], old_starts[segment] + live)
        new = slice(starts[place], starts[place] + live)
        k_QD[new], v_QD[new] = k_RD[old], v_RD[old]


def add_rms_norm(residual_NC: Tensor, x_NC: Tensor | None, weight_C: Tensor, eps: float) -> Tensor:
    """Add x to the residual stream, in place, and return its RMSNorm [N, C] (arXiv:1910.07467)."""
    if x_NC is not None:
        residual_NC += x_NC
    return _rms_norm(residual_NC, weight_C, eps)


def rope(
    q_NHD: Tensor, k_NUD: Tensor, cos_ND: Tensor, sin_ND: Tensor, q_weight_D: Tensor | None,
    k_weight_D: Tensor | None, eps: float,
) -> None:  # fmt: skip
    """Rotate the heads of queries and keys, in place (arXiv:2104.09864), after an RMSNorm of each if it has weights."""
    for x, weight_D in ((q_NHD, q_weight_D), (k_NUD, k_weight_D)):
        normed = x if weight_D is None else _rms_norm(x, weight_D, eps)
        low, high = normed.chunk(2, dim=-1)
        x.copy_(normed * cos_ND[:, None] + torch.cat((-high, low), dim=-1) * sin_ND[:, None])


def silu_mul(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """Return SiLU(gate) * up, [N, F] (arXiv:2002.05202)."""
    return F.silu(gate_NF) * up_NF


def linear(x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, gated: bool, early: bool) -> Tensor:
    """Return x W^T + bias, [N, O]; with `gated` SiLU of its first half times the second, [N, O / 2].

    Args:
        early: a GPU may read the weight before the stream's previous kernel ends: nothing that still runs writes it.
    """
    out_NO = F.linear(x_NC, weight_OC, bias_O)
    return silu_mul(*out_NO.chunk(2, dim=1)) if gated else out_NO


def linear_rope(
    x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, cos_ND: Tensor, sin_ND: Tensor, heads: int, early: bool
) -> Tensor:  # fmt: skip
    """Return x W^T + bias, [N, O], whose first heads of D outputs each are rotated as by `rope`."""
    out_NO = F.linear(x_NC, weight_OC, bias_O)
    turned_NHD = out_NO[:, : heads * cos_ND.shape[1]].unflatten(1, (heads, cos_ND.shape[1]))
    rope(turned_NHD, turned_NHD[:, :0], cos_ND, sin_ND, None, None, 0.0)
    return out_NO


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(_wide(x.dtype))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(q_HTD: Tensor, k_UCD: Tensor, first: int, scaling: float) -> Tensor:
    """Return scaled logits [U, G, T, C] of queries at first .. first + T over keys 0 .. C; -inf for later keys."""
    (heads, tokens, dim), kv_heads, seen = q_HTD.shape, k_UCD.shape[0], k_UCD.shape[1]
    dtype = _wide(q_HTD.dtype)
    q_UQD = q_HTD.to(dtype).reshape(kv_heads, heads // kv_heads * tokens, dim)
    logits = torch.bmm(q_UQD, k_UCD.to(dtype).transpose(1, 2)).mul_(scaling)
    position_T1 = first + torch.arange(tokens, device=q_HTD.device)[:, None]
    future_TC = torch.arange(seen, device=q_HTD.device) > position_T1
    return logits.view(kv_heads, heads // kv_heads, tokens, seen).masked_fill_(future_TC, -torch.inf)


def _query_blocks(q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Iterator[tuple[int, Tensor]]:
    """Yield the first query of each block, and the block's logits."""
    tokens = q_HTD.shape[1]
    for begin in range(0, tokens, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, tokens)
        yield begin, _logits(q_HTD[:, begin:end], k_UTD[:, :end], begin, scaling)


def _add_up(x: Tensor, dim: int) -> Tensor:
    """Sum in the same order for every element, so that equal keys get equal scores; `x.sum` does not guarantee that."""
    first, *rest = x.unbind(dim)
    total = first.clone()
    for part in rest:
        total += part
    return total


def _pool(x_UN: Tensor, pool: str, kernel_size: int) -> Tensor:
    if pool == "none" or x_UN.shape[-1] == 0:
        return x_UN
    half = kernel_size // 2
    if pool == "max":
        return F.max_pool1d(x_UN[None], kernel_size, stride=1, padding=half)[0]
    return F.avg_pool1d(x_UN[None], kernel_size, stride=1, padding=half, count_include_pad=True)[0]
