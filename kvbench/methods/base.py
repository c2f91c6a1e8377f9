"""The method contract: a `LayerContext` goes in, a keep mask comes out.

Shape suffixes: H query heads, U KV heads, G = H / U query heads per KV head, T tokens of the compressed span,
W window queries, N candidate tokens (T without sinks and window), D head dimension.

A method is composed of parts, each a small frozen dataclass without state:

    score   (ctx) -> [U, T] float, higher = keep             kvbench.methods.scores
    layers  tokens, sizes [, statistics] -> tokens per layer  kvbench.methods.layers
    heads   candidates, tokens -> tokens per KV head          kvbench.methods.heads
    select  candidates, tokens per head -> keep mask [U, T]   kvbench.methods.select
    store   optional: how the kept tokens are stored          kvbench.methods.store
    decode  optional: what leaves the cache while generating  kvbench.methods.decode
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


class Kernels(Protocol):
    """What a GPU may do faster than torch, with the same result up to rounding (`kvbench_kernels.ops.prompt`)."""

    def window_score(
        self, q_HWD: Tensor, k_UTD: Tensor, *, scaling: float, reduce: str, pooling: str, kernel_size: int
    ) -> Tensor: ...

    def column_sums(self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float) -> Tensor: ...

    def select(self, score_UN: Tensor, total: int, floor: float, scope: str) -> Tensor: ...


class LayerContext:
    """One layer's prompt, as a method sees it. Everything derived is computed once and shared by all variants.

    Args:
        q_HTD: queries after RoPE.
        k_UTD: keys after RoPE.
        v_UTD: values.
        scaling: factor on the logits; 1 / sqrt(D) if None.
        layer, num_layers: position of the layer.
        token_ids: [T] prompt ids, where a method asks for token types.
        spans: named ranges of the prompt, e.g. {"context": (0, 900), "question": (900, 1017)}.
        shared: a dict that lives as long as the prompt, for methods that reuse one layer's choice in others.
        kernels: what computes scores and selections; None for torch.
    """

    def __init__(
        self,
        q_HTD: Tensor,
        k_UTD: Tensor,
        v_UTD: Tensor,
        *,
        scaling: float | None = None,
        layer: int = 0,
        num_layers: int = 1,
        token_ids: Tensor | None = None,
        spans: dict[str, tuple[int, int]] | None = None,
        shared: dict[Hashable, Any] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        if q_HTD.dim() != 3 or k_UTD.dim() != 3 or q_HTD.shape[0] % k_UTD.shape[0]:
            raise ValueError(
                f"q {tuple(q_HTD.shape)} and k {tuple(k_UTD.shape)} must be [heads, tokens, dim] with "
                "query heads a multiple of KV heads"
            )
        self.q, self.k, self.v = q_HTD, k_UTD, v_UTD
        self.scaling = q_HTD.shape[-1] ** -0.5 if scaling is None else scaling
        self.layer, self.num_layers = layer, num_layers
        self.token_ids, self.spans = token_ids, spans or {}
        self.shared: dict[Hashable, Any] = {} if shared is None else shared
        self.kernels = kernels
        self._memo: dict[Hashable, Any] = {}

    @property
    def num_kv_heads(self) -> int:
        return self.k.shape[0]

    @property
    def group(self) -> int:
        """Query heads per KV head; query head h reads KV head h // group."""
        return self.q.shape[0] // self.k.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.k.shape[1]

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Free everything but keys, values and these memos, for a layer that waits for the others."""
        self._memo = {key: self._memo[key] for key in keys}
        self.q = self.q[:, :0].clone()
        # views of a fused projection would keep all of it alive
        self.k, self.v = (x.clone() if x.untyped_storage().nbytes() > x.nbytes else x for x in (self.k, self.v))

    def memo(self, key: Hashable, compute: Callable[[], R]) -> R:
        """Compute once per layer and prompt, whoever asks first."""
        if key not in self._memo:
            self._memo[key] = compute()
        value: R = self._memo[key]
        return value

    @cached_property
    def _dtype(self) -> torch.dtype:
        # Scores are never rounded to half precision: that changes 0.2 to 1 % of a kept set.
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    def window_attention(self, window: int) -> Tensor:
        """Causal attention of the last `window` queries over all keys: [U, G, W, T]."""
        return self.memo(
            ("window_attention", window), lambda: self._attention(self.num_tokens - window, self.num_tokens)
        )

    def column_sums(self) -> Tensor:
        """Attention mass every key receives from all queries, exact and causal: [H, T].

        Softmax rows are independent, so blocks of queries can be summed one after the other;
        memory is O(H * block * T), never T x T.
        """
        return self.memo("column_sums", self._column_sums)

    def _column_sums(self) -> Tensor:
        if self.kernels is not None:
            return self.kernels.column_sums(self.q, self.k, scaling=self.scaling)
        # about a million logits at a time stay in a CPU's cache; fewer than 64 queries would waste the matmul
        block = max(64, 2**20 // (self.q.shape[0] * self.num_tokens))
        sums_HT = torch.zeros(self.q.shape[0], self.num_tokens, dtype=self._dtype, device=self.q.device)
        for begin in range(0, self.num_tokens, block):
            end = min(begin + block, self.num_tokens)
            sums_HT[:, :end] += self._attention(begin, end).sum(2).flatten(0, 1)
        return sums_HT

    def _attention(self, begin: int, end: int) -> Tensor:
        """softmax(q[begin:end] k^T) with the causal mask, over keys [0, end): [U, G, end - begin, end]."""
        queries = end - begin
        q = self.q[:, begin:end].to(self._dtype).reshape(self.num_kv_heads, self.group * queries, -1)
        logits = torch.bmm(q, self.k[:, :end].to(self._dtype).transpose(1, 2)).mul_(self.scaling)
        logits = logits.view(self.num_kv_heads, self.group, queries, end)
        future = torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu_(1)
        logits[..., begin:].masked_fill_(future, -torch.inf)
        return logits.softmax(-1)


@dataclass(eq=False)
class Candidates:
    """Scores of the tokens that may be evicted, with their orders computed once for all variants.

    `values_UN` holds the columns [sinks, T - window) of the scores. Ties go to the lower position,
    and in the order over all heads to the lower head.
    """

    values_UN: Tensor
    _flat: dict[Any, Tensor] = field(default_factory=dict)

    @cached_property
    def order_UN(self) -> Tensor:
        """Candidate positions of each head by descending score."""
        return self.values_UN.argsort(dim=-1, descending=True, stable=True)

    @cached_property
    def rank_UN(self) -> Tensor:
        """Rank of each candidate within its head, 0 = best."""
        ranks = torch.arange(self.values_UN.shape[1], device=self.values_UN.device)
        return torch.empty_like(self.order_UN).scatter_(1, self.order_UN, ranks.expand_as(self.order_UN))

    def heads_by_rank(self, scale_U: Tensor | None = None, key: Hashable = None) -> Tensor:
        """Head of every candidate of the layer, best first: [U * N]; `scale_U` weighs heads (named by `key`)."""
        if key not in self._flat:
            values = self.values_UN if scale_U is None else self.values_UN * scale_U[:, None]
            order = values.flatten().argsort(descending=True, stable=True)
            self._flat[key] = order // max(1, self.values_UN.shape[1])
        return self._flat[key]


class Score(Protocol):
    """[U, T] scores; columns of sinks and window are ignored. Equal parts are computed once per layer."""

    def __call__(self, ctx: LayerContext) -> Tensor: ...


@dataclass(frozen=True)
class Ask:
    """What a layer allocator is asked for.

    Attributes:
        tokens: budget per KV head, averaged over layers and heads, below `span`.
        span: prompt tokens; layers, heads: layers of the model and KV heads of each.
        protected: sinks and window of each head, part of `tokens`.
        statistics: what `Layers.statistic` made of every layer, where the allocator needs it.
    """

    tokens: int
    span: int
    layers: int
    heads: int
    protected: int
    statistics: Sequence[Tensor] | None = None


class Layers(Protocol):
    """Tokens of each layer, summed over its KV heads, sinks and window included."""

    needs_statistics: bool

    def statistic(self, score_UT: Tensor) -> Tensor:
        """What of a layer's scores `__call__` wants of every layer, if `needs_statistics`."""
        ...

    def __call__(self, ask: Ask) -> list[int]: ...


class Heads(Protocol):
    """Candidates to keep per head, [U] on the host; `total` is the layer's sum."""

    def __call__(self, candidates: Candidates, total: int) -> list[int]: ...


class Select(Protocol):
    """The keep mask [U, T] from candidates to keep per head."""

    sinks: int
    window: int | float

    def __call__(self, ctx: LayerContext, candidates: Candidates, counts: list[int], window: int) -> Tensor: ...
