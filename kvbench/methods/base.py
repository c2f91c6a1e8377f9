"""The contract of a method's parts: a `LayerContext` goes in, a keep mask comes out.

Shape suffixes: U KV heads, G query heads per KV head, T tokens of the compressed span, N candidate tokens (T without
those that are always kept), D head dimension.

A method is composed of parts. Each is a small frozen dataclass without state that inherits its protocol:

    score   layer of a prompt -> [U, T] float, higher = keep        kvbench/methods/scores/
    layers  budget [, statistics] -> tokens per layer               kvbench/methods/layers/
    heads   candidates, tokens of the layer -> tokens per KV head   kvbench/methods/heads/
    select  candidates, tokens per KV head -> keep mask [U, T]      kvbench/methods/select/
    probe   optional: more forward passes before anything is scored kvbench/methods/probe/ (contract: probing.py)
    merge   optional: keep mask -> keys and values to store         kvbench/methods/merge/
    feed    optional: tokens of the prompt that enter one by one    kvbench/methods/feed/ (contract: decoding.py)
    store   optional: the form in which kept tokens are held        kvbench/methods/store/ (contract: storage.py)
    decode  optional: what leaves the cache while generating        kvbench/methods/decode/ (contract: decoding.py)
    look    optional: the kept tokens that each decode step reads   kvbench/methods/look/ (contract: looking.py)

A part checks its own fields when it is built and raises `InvalidField`. Parts are compared and hashed by their fields:
variants with equal scores share one computation. `needs` names what a part reads apart from queries, keys and values.

All methods of a job group share the tensors of a context, those included that it computes when asked
(`ctx.column_sums()`, `ctx.score(part)`). So a part works on copies and never writes into them; `unchanged.py` checks
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.context import LayerContext
from kvbench.methods.plan import Plan
from kvbench.methods.prompt_facts import PromptFacts


class Protected(NamedTuple):
    """Tokens of each KV head that are always kept: the first `sinks` and the last `window`."""

    sinks: int
    window: int

    @property
    def total(self) -> int:
        """Number of protected tokens per KV head."""
        return self.sinks + self.window


NEEDS = frozenset({"model", "hidden", "token_ids", "spans", "probed", "task"})
"""The fields of a context that are provided only where a part asks for them; see `LayerContext`."""


@runtime_checkable
class Part(Protocol):
    """The base of all parts that see a layer of the prompt.

    Attributes:
        idle: (field, switch, word): the field is not read if the switch is set to this word. A dial that feeds the
            field must keep its default then. Numbers at the end of their range are no such words.
        draws: True if it draws random numbers, see `LayerContext.generator`. Another `seed` is another run then.
    """

    idle: ClassVar[Sequence[tuple[str, str, str]]] = ()
    draws: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The fields of the context that this part reads, out of `NEEDS`."""
        return frozenset()

    @property
    def queries_at_once(self) -> int:
        """Queries whose attention to all tokens is held at once, of a part that is no score; see `Score.queries`."""
        return 0

    def check_model(self, *, layers: int, heads: int, query_heads: int) -> None:
        """Raise InvalidField if the part does not fit a model of this shape. It is called before weights load."""
        return None

    def for_prompt(self, facts: PromptFacts) -> Self:
        """Return the part with which a prompt is compressed: itself, or one with other fields.

        A part whose fields depend on the prompt, such as the number of queries that score it, chooses them here, once
        per prompt. Before that, without a prompt, it must answer for any prompt: a selection protects as many tokens as
        it may ever do.
        """
        return self

    def chosen(self, facts: PromptFacts) -> Mapping[str, str]:
        """Return what the part chose by the prompt, for its record: {name: choice}; empty if it chooses nothing."""
        return {}


@runtime_checkable
class Score(Part, Protocol):
    """A rule for what a token is worth to a KV head."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores, higher = keep. Columns of protected tokens are ignored."""
        ...

    @property
    def queries(self) -> int:
        """Queries whose attention to all tokens is held at once; 0 if none is. For the memory estimate alone."""
        return 0

    @property
    def is_shared(self) -> bool:
        """True if all KV heads of a layer get the same scores, so that no rule can tell the heads apart by them."""
        return False

    @property
    def is_positional(self) -> bool:
        """True if scores follow from positions alone, so that no rule can tell the layers apart by them."""
        return False

    @property
    def unscored(self) -> int:
        """Tokens at the end of the prompt that get no score of their own. The selection must protect them."""
        return 0

    def layer_of(self, layer: int, num_layers: int) -> int:
        """Return the layer whose scores serve `layer`: itself, or an earlier one.

        Layers are counted among those that are compressed, as in `LayerContext.layer`.
        """
        return layer


@dataclass(frozen=True)
class LayerBudget:
    """A budget to be divided over the layers of a model.

    Attributes:
        tokens: budget per KV head, averaged over layers and heads.
        span: tokens of the prompt, above `tokens`.
        layers: layers of the model that are compressed.
        heads: KV heads of each layer.
        query_heads: query heads of each layer.
        sinks, window: tokens of each head that are always kept, the first and the last; part of `tokens`.
        statistics: what `Layers.statistic` returned for every layer, where the allocator needs it.
    """

    tokens: int
    span: int
    layers: int
    heads: int
    query_heads: int
    sinks: int = 0
    window: int = 0
    statistics: Sequence[Tensor] | None = None

    @property
    def protected(self) -> int:
        """Tokens of each head that are always kept."""
        return self.sinks + self.window

    @property
    def free(self) -> int:
        """Candidates to keep, over all layers and heads."""
        return (self.tokens - self.protected) * self.layers * self.heads

    def stacked(self) -> Tensor:
        """Return the statistics of all layers on the CPU, [L, ...]. Raises ValueError if a layer's is missing."""
        if self.statistics is None or len(self.statistics) != self.layers:
            raise ValueError(f"these layer budgets need all {self.layers} layers; use keep_layers")
        return torch.stack([statistic.detach().to("cpu") for statistic in self.statistics])


@runtime_checkable
class Layers(Part, Protocol):
    """A rule for how many tokens each layer keeps."""

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Return the tokens of each layer, summed over its KV heads, protected tokens included."""
        ...

    @property
    def is_even(self) -> bool:
        """True if every layer gets the same, whatever the scores."""
        return False

    @property
    def exact(self) -> bool:
        """True if the layers' tokens add up to the budget; False for a reference's rounding of it.

        A field `allocation` of the part chooses between the two.
        """
        return getattr(self, "allocation", "exact") == "exact"

    @property
    def needs_statistics(self) -> bool:
        """True if the rule reads a statistic of every layer. Keys and values then wait for the end of the prefill."""
        return False

    def statistic(self, ctx: LayerContext, score_UT: Tensor) -> Tensor:
        """Return the summary of a layer that `__call__` reads, if the rule needs statistics.

        It is called while the layer's queries are still there.
        """
        raise TypeError(f"{type(self).__name__} reads no statistics")


@runtime_checkable
class Heads(Part, Protocol):
    """A rule for how many candidates each KV head of a layer keeps."""

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> HeadBudget:
        """Return the candidates to keep per KV head, which add up to `total`.

        Args:
            total: candidates to keep in this layer, summed over its KV heads.
            budget: the budget of all layers, without statistics.
        """
        ...

    @property
    def is_even(self) -> bool:
        """True if every KV head of a layer gets the same, whatever the scores."""
        return False

    @property
    def compares_heads(self) -> bool:
        """True if the rule gives a head more the better its scores are next to those of the others."""
        return False

    @property
    def exact(self) -> bool:
        """True if the heads' candidates add up to the layer's total; False for a reference's rounding of it.

        A field `allocation` of the part chooses between the two.
        """
        return getattr(self, "allocation", "exact") == "exact"


@runtime_checkable
class NumberedHeads(Heads, Protocol):
    """A rule whose numbers no score changes."""

    def numbers(self, layer: int, total: int, budget: LayerBudget) -> Sequence[int]:
        """Return the candidates to keep per KV head of a layer, which add up to `total`."""
        ...

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> HeadBudget:
        """Return the candidates to keep per KV head."""
        return self.numbers(ctx.layer, total, budget)


@runtime_checkable
class Select(Part, Protocol):
    """A rule for which tokens a KV head keeps."""

    @property
    def counted(self) -> bool:
        """True if it keeps as many tokens as the budget says.

        False if it decides by itself how many. Its method has no layers, no heads and no budget; the kept tokens are
        measured and reported.
        """
        return True

    @property
    def exact(self) -> bool:
        """True if a counted selection keeps as many tokens as it may; False if a reference's rule may keep fewer."""
        return getattr(self, "allocation", "exact") == "exact"

    @property
    def scores(self) -> Sequence[Score]:
        """Further scores that it asks the context for. They are computed before a waiting layer frees its queries."""
        return ()

    @property
    def policies(self) -> Sequence[str]:
        """The names of the policies that it chooses from for each KV head; empty if it chooses none."""
        return ()

    @property
    def reason(self) -> str:
        """The cause for which it always keeps tokens, where no dial says so; for messages."""
        return "by its selection"

    def with_template(self, tokens: int) -> Self:
        """Return the selection for prompts of which a chat template writes the first `tokens`."""
        return self

    def plan(self, ctx: LayerContext, keep_UT: Tensor) -> Plan:
        """Return the policy of each KV head while generating, if there are `policies`.

        Args:
            keep_UT: what `__call__` returned for the layer.
        """
        raise TypeError(f"{type(self).__name__} chooses no policies")

    def protected(self, tokens: int) -> Protected:
        """Return the first and last tokens that are always kept under a budget of `tokens` per KV head.

        If the selection is not counted, `tokens` is the length of the prompt.
        """
        return Protected(0, 0)

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        """Return the keep mask [U, T]: the protected tokens, and of the candidates as many as `budget` gives a head.

        A selection that is not counted gets no budget, and candidates only if its method has a score.
        """
        ...


@runtime_checkable
class Merge(Part, Protocol):
    """A rule that changes kept keys and values, so that they carry something of the dropped ones."""

    @property
    def scores(self) -> Sequence[Score]:
        """Scores that it asks the context for. They are computed before a waiting layer frees its queries."""
        return ()

    def __call__(self, ctx: LayerContext, keep_UT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values [U, T, D] to store. Only columns in `keep_UT` are read."""
        ...
