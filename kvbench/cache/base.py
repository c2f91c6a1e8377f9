"""The interface between the engine and a cache.

Shape suffixes: B rows of the decode batch, H query heads, U KV heads, T tokens, D head dimension.
A row is one generation: a prompt under one variant. Logical position and stored length are different things: the
engine counts the tokens that were seen, the cache counts the tokens that were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from kvbench.cache.host_work import HostWork
from kvbench.cache.quota import Counts as QuotaCounts
from kvbench.methods.decoding import Decoding
from kvbench.methods.kernels import Kernels
from kvbench.methods.looking import Look
from kvbench.methods.plan import Plan
from kvbench.methods.storage import Side, Store
from kvbench_kernels.ops.host_sums import HostSums

Counts = list[tuple[int, int, list[QuotaCounts]]]
"""The counts of a cache on the host, per layer: free tokens of every active segment, appended tokens, and the counts of
its decode policies."""

Rotate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NewTokens:
    """The ids of the tokens that a call appends, for policies that tell tokens apart by their ids.

    Attributes:
        ids: per row, on the host.
        ids_BT: the same on the device.
    """

    ids: Sequence[Sequence[int]]
    ids_BT: Tensor


@dataclass(frozen=True)
class Entry:
    """The part of one layer's prompt that one row keeps.

    Args:
        row: id of the row.
        keep_UT: bool mask of kept tokens.
        reserve: tokens that will be appended; the cache allocates their slots at once.
        store: storage part of the method; None for plain rows.
        decoding: decode part of the method; None for rows that evict nothing while generating.
        score_UT: the scores from which a policy starts; None without a policy, or if it needs none.
        base_U: each KV head's share of the budget while generating; None without a policy.
        at_once: most tokens that are appended in one call, apart from questions.
        rotate: rotates keys by further positions, for policies that turn keys; see `ModelView.rotate`.
        side: what the storage part's `prepare` returned for keys and values.
        look: look part of the method; None for rows of which a step reads everything.
        reads: tokens that a query head may read per step; None without a look.
        seed: seed of the run and the prompt, for policies that draw random numbers.
        plan: the policy that the selection chose for each head; None if it chooses none.
        total: tokens that all heads keep together, if that is known without the mask; then the cache need not wait for
            the device to count them.
        model_layer: number of the layer in the model, for looks; None if it is that among the compressed layers.
    """

    row: int
    keep_UT: Tensor
    reserve: int
    store: Store | None = None
    decoding: Decoding | None = None
    score_UT: Tensor | None = None
    base_U: Sequence[int] | None = None
    at_once: int = 1
    rotate: Rotate | None = None
    side: Sequence[Side] = (Side(), Side())
    look: Look | None = None
    reads: int | None = None
    seed: int = 0
    plan: Plan | None = None
    total: int | None = None
    model_layer: int | None = None

    def reads_all(self, layer: int) -> bool:
        """Return True if every step reads all tokens of a layer, given by its place among the compressed ones."""
        return self.look is None or self.look.reads_all(layer if self.model_layer is None else self.model_layer)

    @property
    def followed(self) -> Plan | None:
        """The plan that the decode policy follows; None without one."""
        return self.plan if self.decoding is not None and self.decoding.policy.follows_plan else None


@dataclass
class Reads:
    """The tokens that the query heads of a row read in decode steps of one layer, counted on the device."""

    is_whole: bool = False  # every step reads all tokens of the layer; the budget does not apply to it
    most: Tensor | int = 0
    total: Tensor | int = 0
    steps: int = 0

    def count(self, tokens: Tensor, heads: int | None = None) -> None:
        """Count a step: tokens of each query head, or of all `heads` alike."""
        self.most = torch.maximum(torch.as_tensor(self.most, device=tokens.device), tokens.max())
        self.total = self.total + (tokens.sum() if heads is None else tokens * heads)
        self.steps += tokens.numel() if heads is None else heads


class TokensRead(NamedTuple):
    """The tokens that a query head of a row read per decode step.

    Attributes:
        most: the most, in the layers to which the budget applies; 0 without such a step.
        mean: the mean over steps, heads and all compressed layers; 0 without a step.
    """

    most: int
    mean: float


def tokens_read(layers: Sequence[Reads]) -> TokensRead:
    """Return the tokens that a row with a look read, from the counts of its layers."""
    chosen = [int(reads.most) for reads in layers if not reads.is_whole]
    steps = sum(reads.steps for reads in layers)
    return TokensRead(max(chosen, default=0), sum(int(reads.total) for reads in layers) / max(1, steps))


class KVCache(Protocol):
    """The keys and values of all layers and rows.

    Attributes:
        kernel: name of the backend that attends to them.
        prompt: kernels for prompts (`kvbench_kernels.ops.prompt`); None if the backend has none.
        sums: functions for a prompt's attention and outputs on a CPU; None if the backend has none.
    """

    @property
    def kernel(self) -> str: ...

    @property
    def prompt(self) -> Kernels | None: ...

    @property
    def sums(self) -> HostSums | None: ...

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        """Store the keys and values of a prompt that the rows keep.

        Args:
            later: about how many tokens later calls will add of the same prompt in this layer, over all heads and the
                reserved ones included. It changes no result: tokens of all calls can then be written to their places.
        """
        ...

    def fork(self, layer: int, row: int, copies: Sequence[int]) -> None:
        """Give new rows in one layer what a row of it holds, the state of its decode policy included."""
        ...

    def attend(
        self,
        layer: int,
        rows: Sequence[int],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        """Append T new tokens to `rows`, attend causally, apply decode policies. Return [B, H, T, D].

        Args:
            new: ids of the tokens; without them a policy's plan pins none of them.
        """
        ...

    def release(self, rows: Sequence[int]) -> None:
        """Forget finished rows. Their memory is free after `compact` at the latest."""
        ...

    def compact(self) -> None:
        """Free all memory of finished rows; called before prompts join, so that old and new rows never add up."""
        ...

    def lengths(self, row: int) -> list[list[int]]:
        """Return the stored tokens per layer and KV head."""
        ...

    def tokens_read(self, row: int) -> TokensRead | None:
        """Return how many tokens a decode step of a row read; None for a row of which steps read everything."""
        ...

    def peak(self, row: int) -> int:
        """Return the most tokens that any KV head of a row held after a step."""
        ...

    def used_bytes(self, row: int) -> int:
        """Return the bytes of the stored tokens of a row."""
        ...

    def held_bytes(self, row: int) -> int | None:
        """Return the bytes of the stored tokens of a row, with what its policy knows of each; None in a simulation."""
        ...

    def slack_bytes(self, row: int) -> int:
        """Return the bytes that a row reserves for further tokens, in addition to its stored ones."""
        ...

    def bytes(self) -> int:
        """Return the bytes allocated for all rows."""
        ...


@runtime_checkable
class Recordable(Protocol):
    """A cache whose decode steps can be recorded as a CUDA graph.

    A recorded step runs on the device alone, apart from `host_work`: a graph ends before it, and another one follows.
    `advance` updates the cache's counts on the host, once per replay.
    """

    @property
    def host_work(self) -> HostWork:
        """The parts of a step that need the host in every step."""
        ...

    @property
    def moves(self) -> int:
        """Number of moves in memory so far. A graph is valid as long as this number stays the same."""
        ...

    def room(self, rows: Sequence[int]) -> int:
        """Return how many tokens these rows can append in recorded steps; 0 if the next step cannot be recorded."""
        ...

    def advance(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Count the tokens that a recorded step appended to `rows`, given by their ids."""
        ...

    def counts(self) -> Counts:
        """Return the counts on the host, for `reset_counts` after a recording that failed."""
        ...

    def reset_counts(self, counts: Counts) -> None:
        """Restore the counts on the host."""
        ...
