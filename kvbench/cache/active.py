"""The rows of a layer's arena that step together.

Shape suffixes: H query heads, T tokens, D head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kvbench.cache.arena import Arena, Segment
from kvbench.cache.base import NewTokens
from kvbench.cache.policy_group import PolicyGroup
from kvbench.cache.policy_row import PolicyRow
from kvbench.cache.shared_slots import SharedSlots
from kvbench.methods.decoding import DecodePolicy
from kvbench_kernels.backends import Backend, Buffers, Lanes


@dataclass(frozen=True)
class ActiveRows:
    """The rows that step together.

    Attributes:
        plain: indices of the segments of rows without a policy: one per row and KV head.
        lanes: the segments of all rows.
        groups: the rows with a policy, by policy.
        steps: the slots of the groups that step together: of those that may wait for the end of the step, of the others
            that need no host, and of each that does.
    """

    rows: tuple[int, ...]
    plain: list[int]
    lanes: Lanes
    groups: list[PolicyGroup]
    steps: list[SharedSlots]

    def free(self, segments: Sequence[Segment]) -> int:
        """Return how many tokens fit into every segment of a row without a policy."""
        return min((segments[i].capacity - segments[i].length for i in self.plain), default=sys.maxsize)

    def count(self, segments: Sequence[Segment], appended: int) -> None:
        """Update the lengths of segments, by the tokens appended to rows without a policy and by the policies."""
        for index in self.plain:
            segments[index].length += appended
        for group in self.groups:
            for index, length in zip(group.index, group.quota.lengths_BU.flatten().tolist(), strict=True):
                segments[index].length = length

    def step_on_host(self, q_BHTD: Tensor, buffers: Buffers, scaling: float, new: NewTokens | None) -> None:
        """Let the policies act that need the host in every step."""
        for slots in self.steps:
            if slots.needs_host:
                slots.step(q_BHTD, buffers, scaling, new)


def activate(
    rows: tuple[int, ...],
    kv_heads: int,
    arena: Arena,
    policy_rows: Mapping[int, PolicyRow],
    layer: int,
    backend: Backend,
) -> ActiveRows:
    """Return the rows of a batch with their segments. Those of equal policies form a group.

    Args:
        policy_rows: the rows with a policy.
    """
    position = {(s.row, s.head): index for index, s in enumerate(arena.segments)}
    segments = [[position[row, head] for head in range(kv_heads)] for row in rows]
    plain = [i for row, of_row in zip(rows, segments, strict=True) if row not in policy_rows for i in of_row]
    lanes = Lanes([i for of_row in segments for i in of_row], len(arena.segments), arena.buffers.k_RD.device)
    places: dict[DecodePolicy, list[int]] = {}
    for place, row in enumerate(rows):
        if row in policy_rows:
            places.setdefault(policy_rows[row].decoding.policy, []).append(place)
    groups = [
        PolicyGroup(
            [(rows[place], policy_rows[rows[place]]) for place in of_policy],
            places=of_policy,
            batch=len(rows),
            segments=[segments[place] for place in of_policy],
            arena=arena,
            layer=layer,
            backend=backend,
        )
        for of_policy in places.values()
    ]
    waiting = [group for group in groups if group.can_wait]
    without_host = [group for group in groups if not group.can_wait and not group.needs_host]
    alone = [[group] for group in groups if group.needs_host]
    together = [of_groups for of_groups in (waiting, without_host, *alone) if of_groups]
    return ActiveRows(rows, plain, lanes, groups, [SharedSlots(of_groups, backend.host) for of_groups in together])
