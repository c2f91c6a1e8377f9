"""The contract of decode policies: what leaves the cache while an answer is generated.

A policy sees all of its rows in one layer at once, as `Slots`. It owns no state: what it must know of a token lies in
`Slots` and moves with the token. The order of slots means nothing, because attention does not depend on it. A freed
slot is filled with a head's last one, so an eviction moves D numbers per head, however long the row is.

Shape suffixes: B rows of one policy, U KV heads, G query heads per KV head, C slots (padded to the longest head),
T new tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from kvbench.common.kinds import is_number
from kvbench.methods.base import Score
from kvbench.methods.dials import as_plain_number
from kvbench.methods.fields import InvalidField, check_at_least, check_one_of
from kvbench.methods.plan import Plan
from kvbench.methods.rounding import apportion
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots

READS = ("nothing", "last", "all")
PHASES = ("prefill", "decode", "both")
STATE_BYTES = 8  # of a token in a KV head: its position (int32) and its state (float32)


@dataclass(frozen=True)
class Start:
    """The tokens that one row holds in one layer when decoding begins.

    Attributes:
        layer: position of the layer among the model's `num_layers`.
        span: tokens of the compressed prompt.
        pos_UC: position of each slot's token in the sequence.
        live_UC: True for slots that hold a token.
        score_UC: the scores of these tokens by the policy's `score`; None for a policy without one.
        plan: what the selection decided for each head; None for a policy that follows no plan.
    """

    layer: int
    num_layers: int
    span: int
    pos_UC: Tensor
    live_UC: Tensor
    score_UC: Tensor | None
    plan: Plan | None = None


@runtime_checkable
class DecodePolicy(Protocol):
    """A rule for what leaves the cache after a step. It is pure: the cache holds the state.

    Attributes:
        reads: the attention of a step that `observe` gets: "nothing", "last" (of the newest query) or "all".
        adds_to_prompt: True if `limit` counts from what a head kept of the prompt, and not from its share of a budget.
        turns: True if the keys of `turned` tokens rotate by a position for every later token that leaves.
        turns_all: True if the keys of all tokens do, so that positions are those within the cache. The cache then holds
            every key twice, as it is read and as it was before its first turn.
        remembers: True if a state depends on the states before it. Without that, `observe` is only needed in steps in
            which a token leaves.
        merges: True if tokens that stay take over something of those that leave, as `shares` says.
        draws: True if it draws random numbers, see `Slots.uniform`. Another `seed` is another run then.
        heads_alike: True if heads with the same tokens and limits always lose the same ones. That makes
            `Slots.over_heads` faster.
        phases: the values of `phase` that mean something to the policy.
        follows_plan: True if it needs the plan of a selection with `policies`. The limits come from the plan.
    """

    reads: ClassVar[str] = "nothing"
    adds_to_prompt: ClassVar[bool] = False
    follows_plan: ClassVar[bool] = False
    remembers: ClassVar[bool] = True
    turns: ClassVar[bool] = False
    turns_all: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    heads_alike: ClassVar[bool] = False
    phases: ClassVar[Sequence[str]] = PHASES

    @property
    def score(self) -> Score | None:
        """The scores of the prompt from which `begin` starts; None if it needs none."""
        return None

    @property
    def asks(self) -> int | None:
        """The newest queries of the prompt on which a replayed state depends; None for all. See scores/replayed.py."""
        return {"nothing": 0, "last": 1}.get(self.reads)

    @property
    def has_limit(self) -> bool:
        """True if `limit` returns numbers; False if `drop` returns a mask."""
        ones_11 = torch.ones(1, 1, dtype=torch.long)
        return self.limit(ones_11, ones_11, 0, ones_11) is not None

    def begin(self, start: Start) -> Tensor:
        """Return the state [U, C] after the prefill: the scores of the tokens, or 0 without any."""
        if start.score_UC is not None:
            return start.score_UC.float()
        return torch.zeros_like(start.pos_UC, dtype=torch.float32)

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor | None:
        """Return the tokens [B, U] that a head may hold after a step; None if `drop` returns a mask.

        It is called on the host and on the device with the same integers, so that the host knows all lengths without
        waiting for the device. It must depend on its arguments alone.

        Args:
            base_BU: the head's share of the budget, or its tokens of the prompt (`adds_to_prompt`), or the limit of
                its plan (`follows_plan`). The tokens that the plan pins while generating are added to what is returned.
            steps_B1: tokens that followed the compressed prompt.
            span_B1: tokens of the compressed prompt.
        """
        return base_BU

    def for_answer(self, new: int | None) -> Self:
        """Return the policy for a row that at most `new` tokens follow; for policies that depend on that number.

        Args:
            new: the tokens of the question and of the answer; None if nobody knows.

        Raises:
            InvalidField: the policy depends on it, and it is None.
        """
        return self

    def protects(self, tokens: int) -> int:
        """Return how many tokens of a head with a limit of `tokens` never leave."""
        return 0

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        """Update `slots.state_BUC` in place from the attention of the T newest tokens, if `reads` wants it.

        The attention is valid during the call alone: the next step writes its own into the same memory.
        """

    def drop(self, slots: Slots) -> Tensor:
        """Return what a token is worth, [B, U, C]: those worth least leave, and of equals the latest; inf protects.

        A head must not protect more tokens than `slots.limit_BU`; `slots.first` and `slots.recent` see to that, each
        for itself: a policy that uses both must share out the limit between them.
        A policy without a limit returns a mask of all tokens that leave.
        """
        ...

    def turned(self, slots: Slots) -> Tensor:
        """Return the slots [B, U, m] whose keys rotate, in an order that does not change from step to step.

        They hold the first tokens of the sequence, so that whatever leaves is later. Not asked with `turns_all`.
        """
        raise TypeError(f"{type(self).__name__} turns no keys")

    def shares(self, slots: Slots, leaving: Leaving) -> Shares:
        """Return what is added to the values, and keys, of tokens that stay. All of it is read before it is added.

        If at most one token leaves per head, this must be work for the device alone, of the same shapes in every step.
        """
        raise TypeError(f"{type(self).__name__} merges nothing")


@dataclass(frozen=True)
class Feed:
    """A prefill of its own: the prompt goes through the decode path in chunks, and the policy evicts after each.

    For methods that change what the prompt's own tokens attend to. Rows with an equal feed go together.

    Args:
        chunk: tokens of a chunk.
    """

    chunk: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, "chunk", 1)


@dataclass(frozen=True)
class Decoding:
    """A decode policy and the dials that every policy has.

    After every step a head holds at most its limit + `buffer` tokens. If it would hold more, and every `interval`
    steps, the policy cuts it back to its limit.

    Args:
        policy: says which tokens leave.
        phase: "both"; "decode" keeps the whole prompt and cuts it to the limit in the first step; "prefill" evicts
            nothing while generating.
        interval: steps between two cuts; 0 for a cut whenever the buffer is full.
        buffer: tokens that a head may hold above its limit between two cuts.
        budget: tokens per KV head while generating, or as a float their share of the budget; None for the budget.
    """

    policy: DecodePolicy
    phase: str = "both"
    interval: int = 0
    buffer: int = 0
    budget: int | float | None = None

    def token_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes that a token in a KV head takes in addition to its key and value of this dimension."""
        return STATE_BYTES + (dim * dtype.itemsize + 1 if self.policy.turns_all else 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", as_plain_number(self.budget))
        check_one_of(self, "phase", self.policy.phases)
        check_at_least(self, "interval", 0)
        check_at_least(self, "buffer", 0)
        if self.phase == "prefill":
            for name, default in (("interval", 0), ("buffer", 0), ("budget", None)):
                if getattr(self, name) != default:
                    raise InvalidField(name, getattr(self, name), "has no effect with {phase}", phase=self.phase)
        if self.interval > 0 and self.buffer == 0 and self.policy.has_limit:
            problem = "has no effect without a buffer: {buffer} means a cut in every step"
            raise InvalidField("interval", self.interval, problem, buffer=0)
        if self.interval == 1 and self.buffer > 0:
            raise InvalidField("buffer", self.buffer, "has no effect: {interval} means a cut in every step", interval=1)
        if not self.policy.has_limit and self.buffer > 0:
            raise InvalidField("buffer", self.buffer, "has no effect: the policy has no limit")
        has_share = self.policy.has_limit and not self.policy.adds_to_prompt and not self.policy.follows_plan
        if not has_share and self.budget is not None:
            raise InvalidField("budget", self.budget, "has no effect: the policy has no share of the budget")
        self._check_budget()

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        if not is_number(self.budget):
            raise InvalidField("budget", self.budget, "give tokens as an integer, or a share in (0, 1] as a float")
        if isinstance(self.budget, int):
            check_at_least(self, "budget", 1)
            if self.phase == "decode":
                problem = f"with {{phase}} the budget is that of generated tokens; give budget={self.budget} alone"
                raise InvalidField("budget", self.budget, problem, phase=self.phase)
        elif not 0 < self.budget <= 1:
            raise InvalidField("budget", self.budget, "a share of the budget must lie in (0, 1]; tokens are an integer")

    def for_answer(self, new: int) -> Decoding:
        """Return the policy and its dials for a row that at most `new` tokens follow."""
        policy = self.policy.for_answer(new)
        return self if policy is self.policy else replace(self, policy=policy)

    def tokens(self, tokens: int) -> int:
        """Return the budget per KV head while generating, if the prompt's is `tokens`."""
        if isinstance(self.budget, float):
            return max(1, int(self.budget * tokens + 1e-9))
        return tokens if self.budget is None else self.budget

    def base(self, shares: Sequence[int], tokens: int) -> list[int]:
        """Return each head's share of the budget while generating.

        Args:
            shares: each head's share of the prompt's budget.
            tokens: the prompt's budget per KV head.
        """
        if self.budget is None:
            return list(shares)
        total = sum(shares) * self.tokens(tokens) // tokens
        return apportion([float(share) for share in shares], total, max(total, 1))
