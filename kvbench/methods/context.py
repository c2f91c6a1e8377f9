"""One layer of a prompt as the parts of a method see it.

Shape suffixes: H query heads, U KV heads, G = H / U query heads per KV head, T tokens of the compressed span,
W window queries, N tokens before the window, D head dimension, E hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from kvbench.methods.kernels import Kernels, SumKernels
from kvbench.methods.memo import Memo, Stamp, Stopwatch
from kvbench.methods.model_view import ModelView
from kvbench.methods.nan import has_nan
from kvbench.methods.part_call import part_call
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.unchanged import is_checked_alone, unchanged

_BLOCK_ELEMENTS = 2**20  # about a million logits stay in the cache of a CPU
COLUMN_SUM_QUERIES = 64  # fewer queries in a block would waste the matrix product


class ScoreRule(Protocol):
    """A score part, as a layer calls it; compared and hashed by its fields."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores."""
        ...

    def layer_of(self, layer: int, num_layers: int) -> int:
        """Return the layer whose scores serve `layer`."""
        ...


EarlierScores = dict[tuple[ScoreRule, int], Tensor]
"""{(score part, layer): scores of the layer that serve later layers of the same prompt}."""


class Summary(Protocol):
    """A part that reads the queries of a layer before they are freed."""

    def __hash__(self) -> int: ...

    def summary(self, ctx: LayerContext) -> Tensor | None:
        """Return what the part reads of the queries."""
        ...


class LayerContext:
    """One layer of a prompt. Everything derived from it is computed once and shared by all variants.

    Args:
        q_HTD: queries after RoPE.
        k_UTD: keys after RoPE.
        v_UTD: values.
        scaling: factor on the logits; 1 / sqrt(D) if None.
        layer: position of the layer among the model's `num_layers`.
        kernels: faster forms of some computations; None for torch.
        lse_HT: natural log-sum-exp of each query's causal logits, float32, for the kernels; None if it is not known.
        clock: gives a stamp of the time around shared computations, for `reused_s`; None where times do not matter.
        facts: token ids, spans, model and seed; see `PromptFacts`.
        hidden_TE: the input of the layer, before its norm; None where no part asks for it.
        probed: results of a method's own forward passes in this layer, by their part.
        earlier: scores of the prompt's earlier layers that serve this one; one dictionary for all layers of a prompt.
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
        kernels: Kernels | None = None,
        sums: SumKernels | None = None,
        lse_HT: Tensor | None = None,
        clock: Callable[[], Stamp] | None = None,
        facts: PromptFacts | None = None,
        hidden_TE: Tensor | None = None,
        probed: Mapping[Any, Any] | None = None,
        earlier: EarlierScores | None = None,
    ) -> None:
        if q_HTD.dim() != 3 or k_UTD.dim() != 3 or q_HTD.shape[0] % k_UTD.shape[0]:
            raise ValueError(
                f"q {tuple(q_HTD.shape)} and k {tuple(k_UTD.shape)} must be [heads, tokens, dim] with "
                "query heads a multiple of KV heads"
            )
        self._q: Tensor | None = q_HTD
        self.k, self.v = k_UTD, v_UTD
        self.group = q_HTD.shape[0] // k_UTD.shape[0]  # query head h reads KV head h // group
        self.scaling = q_HTD.shape[-1] ** -0.5 if scaling is None else scaling
        self.layer, self.num_layers = layer, num_layers
        self.kernels, self.sums = kernels, sums
        self._lse_HT = lse_HT
        self.facts = PromptFacts() if facts is None else facts
        self.hidden_TE = hidden_TE
        self.probed: dict[Any, Any] = dict(probed or {})
        self._earlier: EarlierScores = {} if earlier is None else earlier
        # Scores are never rounded to half precision: that changes 0.2 to 1 % of a kept set.
        self.dtype = torch.float64 if q_HTD.dtype == torch.float64 else torch.float32
        self.watch = Stopwatch() if clock is None else Stopwatch(clock)
        self.memo = Memo(self.watch)

    @property
    def q(self) -> Tensor:
        """The queries [H, T, D].

        Raises:
            RuntimeError: `keep_scores` has freed them.
        """
        if self._q is None:
            raise RuntimeError(
                "the queries of this layer are freed: where layer budgets need the scores of all layers, "
                "only the score part may use queries"
            )
        return self._q

    @property
    def num_kv_heads(self) -> int:
        """Number of KV heads U."""
        return self.k.shape[0]

    @property
    def num_tokens(self) -> int:
        """Number of tokens T."""
        return self.k.shape[1]

    @property
    def model(self) -> ModelView | None:
        """The view of the model, for parts with "model" in their `needs`."""
        return self.facts.model

    @property
    def token_ids(self) -> Tensor | None:
        """The [T] ids of the span, for parts with "token_ids" in their `needs`."""
        return self.facts.token_ids

    @property
    def spans(self) -> Mapping[str, tuple[int, int]]:
        """Begin and end of named regions of the prompt, cut to the span, for parts with "spans" in their `needs`."""
        return self.facts.spans

    @property
    def task(self) -> str | None:
        """The task of the prompt as its benchmark names it, for parts with "task" in their `needs`."""
        return self.facts.task

    def generator(self, part: object) -> torch.Generator:
        """Return random numbers for a part, on the CPU: the same ones in any job group, alone or with other variants.

        They depend on the run's seed, the sample, the layer and the fields of the part.

        Raises:
            ValueError: the part does not say that it draws. The seed of its runs would then be refused.
        """
        if not getattr(part, "draws", False):
            raise ValueError(
                f"method: {type(part).__name__} draws random numbers; write draws = True next to its fields"
            )
        text = f"{self.facts.seed} {self.layer} {type(part).__qualname__} {part!r}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
        return torch.Generator().manual_seed(seed)

    @property
    def reused_s(self) -> float:
        """Seconds that results took when they were computed, summed over the times they were used again.

        Reading them may wait for the device.
        """
        return sum(span.seconds for span in self.watch.reused)

    def score(self, part: ScoreRule) -> Tensor:
        """Return the [U, T] scores by `part`; equal parts share one computation.

        A part whose scores of one layer serve others (`Score.layer_of`) computes nothing in these.

        Raises:
            ValueError: the part returned another shape, which might pass unnoticed by broadcasting; or, on a CPU, NaN
                that the model did not compute, which would rank first; or the layer whose scores serve this one has
                not been asked for them.
        """
        return self.memo(("score", part), lambda: self._own_or_earlier(part))

    def _own_or_earlier(self, part: ScoreRule) -> Tensor:
        source = part.layer_of(self.layer, self.num_layers)
        if source == self.layer:
            score_UT = self._checked_score(part)
            later = range(self.layer + 1, self.num_layers)
            if any(part.layer_of(layer, self.num_layers) == self.layer for layer in later):
                self._earlier[part, self.layer] = score_UT
            return score_UT
        if (part, source) not in self._earlier:
            raise ValueError(
                f"method: {type(part).__name__} uses the scores of layer {source} in layer {self.layer}; that layer "
                "must come first, as in keep_layers(...), which has all layers"
            )
        return self._earlier[part, source].to(self.k.device)  # the layers may lie on different devices

    @contextmanager
    def calling(self, kind: str, part: object) -> Iterator[None]:
        """Check a block that calls a part: errors say which it was, and it changes no tensor of the layer in place.

        Args:
            kind: the role of the part, such as "score".

        Raises:
            PartError: the part raised an exception of its own.
            ValueError: a tensor has changed.
        """
        what = f"the {kind} {type(part).__name__}"
        with self.unchanged(what, looks=is_checked_alone(part)), part_call(what, self.layer):
            yield

    def unchanged(self, who: str, looks: bool = True) -> AbstractContextManager[None]:
        """Return a check that a block changes no tensor of the layer in place; arguments as of `unchanged`."""
        own = (("ctx.q", self._q), ("ctx.k", self.k), ("ctx.v", self.v), ("ctx.hidden_TE", self.hidden_TE))
        return unchanged(who, self.memo, [(name, x) for name, x in own if x is not None], looks)

    def _checked_score(self, part: ScoreRule) -> Tensor:
        with self.calling("score", part):
            score_UT = part(self)
        name, must = type(part).__name__, f"[KV heads, tokens] = {list(self.k.shape[:2])}"
        if not isinstance(score_UT, Tensor):
            raise ValueError(f"method: the score {name} returned {type(score_UT).__name__}, must be a tensor {must}")
        if score_UT.shape != self.k.shape[:2]:
            raise ValueError(f"method: the score {name} returned {list(score_UT.shape)}, must be {must}")
        if has_nan(score_UT) and self._is_finite():
            raise ValueError(f"method: the score {name} returned NaN, which ranks no token")
        return score_UT

    def _is_finite(self) -> bool:
        """Return True if the model computed numbers. If not, the engine finds it in the logits."""
        inputs = (self._q, self.k, self.v, self.hidden_TE)
        return all(x is None or bool(x.isfinite().all()) for x in inputs)

    def summary(self, part: Summary) -> Tensor | None:
        """Return what a storage part reads of the queries; equal parts share one computation."""
        return self.memo(("summary", part), lambda: part.summary(self))

    def keep_scores(self, parts: Iterable[ScoreRule]) -> None:
        """Free everything but keys, values, summaries and the scores by `parts`.

        This is for a layer that waits for the other layers.
        """
        wanted = set(parts)
        for part in wanted:
            if ("score", part) not in self.memo:
                self.score(part)
        summaries = [key for key in self.memo if isinstance(key, tuple) and key[0] == "summary"]
        self.memo.keep_only([*(("score", part) for part in wanted), *summaries])
        self._q = self._lse_HT = self.hidden_TE = None
        # views of a fused projection would keep all of it alive
        self.k, self.v = (x.clone() if x.untyped_storage().nbytes() > x.nbytes else x for x in (self.k, self.v))

    def window_attention(self, window: int) -> Tensor:
        """Return causal attention of the last `window` queries over all keys: [U, G, W, T]."""
        return self.memo(
            ("window_attention", window), lambda: self._attention(self.num_tokens - window, self.num_tokens)
        )

    def rows(self, first: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """Yield causal attention in blocks of queries from `first` on: begin, end, and [U, G, end - begin, end].

        Softmax rows are independent, so blocks can be reduced one after the other; memory is O(H * block * T), never
        T x T. Keys from `end` on get no attention from these queries.
        """
        for begin, end in self._blocks(first):
            yield begin, end, self._attention(begin, end)

    def logit_rows(self, first: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """Yield what `rows` does before the softmax: scaled logits, -inf where a key is later."""
        for begin, end in self._blocks(first):
            yield begin, end, self._logits(begin, end)

    def _blocks(self, first: int) -> Iterator[tuple[int, int]]:
        block = max(COLUMN_SUM_QUERIES, _BLOCK_ELEMENTS // (self.q.shape[0] * self.num_tokens))
        for begin in range(first, self.num_tokens, block):
            yield begin, min(begin + block, self.num_tokens)

    def last_lse(self, queries: int) -> Tensor | None:
        """Return the log-sum-exp of the logits of the last queries, natural, [H, queries]; None if it is not known."""
        return None if self._lse_HT is None else self._lse_HT[:, self.num_tokens - queries :].contiguous()

    def column_sums(self) -> Tensor:
        """Return the attention mass every key receives from all queries, exact and causal: [H, T]."""
        return self.memo("column_sums", self._column_sums)

    def _column_sums(self) -> Tensor:
        lse_HT = self.last_lse(self.num_tokens)
        if self.kernels is not None:
            return self.kernels.column_sums(self.q, self.k, scaling=self.scaling, lse_HT=lse_HT)
        if self.sums is not None:
            of_host_HT = self.sums.column_sums(self.q, self.k, scaling=self.scaling, lse_HT=lse_HT)
            if of_host_HT is not None:
                return of_host_HT
        sums_HT = torch.zeros(self.q.shape[0], self.num_tokens, dtype=self.dtype, device=self.q.device)
        for _, end, attention_UGQT in self.rows():
            sums_HT[:, :end] += attention_UGQT.sum(2).flatten(0, 1)
        return sums_HT

    def _attention(self, begin: int, end: int) -> Tensor:
        """Return softmax(q[begin:end] k^T) with the causal mask, over keys [0, end): [U, G, end - begin, end]."""
        if self.sums is not None and self._lse_HT is not None:
            weights_HQT = self.sums.query_weights(
                self.q[:, begin:end], self.k[:, :end], scaling=self.scaling, lse_HQ=self._lse_HT[:, begin:end]
            )
            if weights_HQT is not None:
                return weights_HQT.view(self.num_kv_heads, self.group, *weights_HQT.shape[1:])
        return self._logits(begin, end).softmax(-1)

    def _logits(self, begin: int, end: int) -> Tensor:
        """Return scaled q[begin:end] k^T, -inf above the diagonal, over keys [0, end): [U, G, end - begin, end]."""
        queries = end - begin
        q = self.q[:, begin:end].to(self.dtype).reshape(self.num_kv_heads, self.group * queries, -1)
        logits = torch.bmm(q, self.k[:, :end].to(self.dtype).transpose(1, 2)).mul_(self.scaling)
        logits = logits.view(self.num_kv_heads, self.group, queries, end)
        future = torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu_(1)
        logits[..., begin:].masked_fill_(future, -torch.inf)
        return logits
