"""Naive attention statistics.

Legend: H query heads, U KV heads, T tokens, D channels, W window queries, S scored tokens (T - W).
"""

from __future__ import annotations

import math

import numpy as np


def attention_rows(
    q_HTD: np.ndarray, k_UTD: np.ndarray, head: int, first_query: int, scaling: float | None = None
) -> np.ndarray:
    """Return causal softmax rows [T - first_query, T] of one query head, which reads KV head `head // g`."""
    num_heads, tokens, dim = q_HTD.shape
    group = num_heads // k_UTD.shape[0]
    keys = k_UTD[head // group].astype(np.float64)
    scale = 1 / math.sqrt(dim) if scaling is None else scaling
    rows = np.zeros((tokens - first_query, tokens))
    for query in range(first_query, tokens):
        logits = keys[: query + 1] @ q_HTD[head, query].astype(np.float64) * scale
        weights = np.exp(logits - logits.max())
        rows[query - first_query, : query + 1] = weights / weights.sum()
    return rows


def reduce_groups(values_HS: np.ndarray, num_kv_heads: int, reduce: str) -> np.ndarray:
    """Combine the query heads of every KV head: [H, S] to [U, S]."""
    group = values_HS.shape[0] // num_kv_heads
    out = np.zeros((num_kv_heads, values_HS.shape[1]))
    for u in range(num_kv_heads):
        for j in range(values_HS.shape[1]):
            members = [values_HS[u * group + i, j] for i in range(group)]
            out[u, j] = {"sum": sum(members), "mean": sum(members) / group, "max": max(members)}[reduce]
    return out


def pool(values_S: np.ndarray, kernel_size: int, pooling: str) -> np.ndarray:
    """Pool with stride 1 and padding `kernel_size // 2`: avg counts the zeros outside, max ignores them."""
    if pooling == "none":
        return values_S.copy()
    half, size = kernel_size // 2, len(values_S)
    out = np.zeros(size)
    for j in range(size):
        near = [values_S[i] for i in range(max(0, j - half), min(size, j + half + 1))]
        out[j] = max(near) if pooling == "max" else sum(near) / kernel_size
    return out


def window_means(q_HTD: np.ndarray, k_UTD: np.ndarray, window: int, scaling: float | None = None) -> np.ndarray:
    """Return the attention of the last `window` queries to the tokens before them, averaged over queries: [H, S]."""
    tokens = q_HTD.shape[1]
    per_head = [attention_rows(q_HTD, k_UTD, h, tokens - window, scaling) for h in range(q_HTD.shape[0])]
    return np.stack([rows[:, : tokens - window].sum(axis=0) / window for rows in per_head])


def window_scores(
    q_HTD: np.ndarray,
    k_UTD: np.ndarray,
    window: int,
    kernel_size: int = 1,
    pooling: str = "none",
    reduce: str = "mean",
    scaling: float | None = None,
) -> np.ndarray:
    """Return the score of the SnapKV family [U, S]: window mean, then the group, then pooling along the keys."""
    grouped = reduce_groups(window_means(q_HTD, k_UTD, window, scaling), k_UTD.shape[0], reduce)
    return np.stack([pool(row, kernel_size, pooling) for row in grouped])


def head_column_sums(q_HTD: np.ndarray, k_UTD: np.ndarray, scaling: float | None = None) -> np.ndarray:
    """Return the attention received by every token from all queries that can see it: [H, T], full causal rows."""
    return np.stack([attention_rows(q_HTD, k_UTD, h, 0, scaling).sum(axis=0) for h in range(q_HTD.shape[0])])


def column_sums(q_HTD: np.ndarray, k_UTD: np.ndarray, reduce: str = "mean", scaling: float | None = None) -> np.ndarray:
    """Return H2O's score per KV head [U, T]."""
    return reduce_groups(head_column_sums(q_HTD, k_UTD, scaling), k_UTD.shape[0], reduce)


def layer_column_sums(q_HTD: np.ndarray, k_UTD: np.ndarray, scaling: float | None = None) -> np.ndarray:
    """Return PrefixKV's score [T]: the mean over all query heads, shared by the layer."""
    return head_column_sums(q_HTD, k_UTD, scaling).mean(axis=0)
