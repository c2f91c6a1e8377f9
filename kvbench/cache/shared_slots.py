"""The slots of the groups of a layer that step together: one append and one move serve all of them.

What policies know of tokens lies in flat buffers, of which each group has a view. So the work that is the same for
every policy does not grow with the number of policies.

Shape suffixes: Y rows of all groups, U KV heads, X slots of all groups, T new tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.cache.base import NewTokens
from kvbench.cache.leaving import copy_tokens, end_slots
from kvbench.cache.policy_group import PolicyGroup
from kvbench.cache.quota import Cut
from kvbench_kernels.backends import Buffers
from kvbench_kernels.ops.host_rows import HostRows, Places


class SharedSlots:
    """The slots of some groups of one layer.

    Args:
        groups: groups that step together; their tensors become views of those of all groups.
        host: the functions that write rows on a CPU; None if torch does it.
    """

    def __init__(self, groups: Sequence[PolicyGroup], host: HostRows | None = None) -> None:
        self.groups, self.host = groups, host
        slots = [group.slots for group in groups]
        self._pos_X, self._state_X, self._live_X, self._seen_Y = (
            _joined(slots, name) for name in ("pos_BUC", "state_BUC", "live_BUC", "seen_B")
        )
        heads, device = groups[0].length_BU.shape[1], self._pos_X.device
        self.length_YU = _joined(groups, "length_BU").view(-1, heads)
        self._start_YU = torch.cat([group.start_BU for group in groups])
        self._buffer_Y1 = torch.cat([group.buffer_B1 for group in groups])
        self._index_N = torch.cat([group.index_N for group in groups])
        widths = [s.pos_BUC.shape[2] for s in slots for _ in range(s.pos_BUC.shape[0] * heads)]
        first = torch.tensor([0, *widths[:-1]], device=device).cumsum(0)
        self._first_YU = first.view(-1, heads)  # the place of column 0 among the slots of all groups
        self._places = Places(
            self._pos_X, self._state_X, self._live_X, self.length_YU, self._seen_Y, self._first_YU.contiguous()
        )
        rows = [len(s.pos_BUC) for s in slots]
        self.parts = [slice(sum(rows[:i]), sum(rows[: i + 1])) for i in range(len(rows))]

    @property
    def needs_host(self) -> bool:
        """True if `step` waits for the device in every step."""
        return any(group.needs_host for group in self.groups)

    @property
    def can_wait(self) -> bool:
        """True if the policies may act at the end of a step, with those of other layers."""
        return self.host is not None and all(group.can_wait for group in self.groups)

    def move_to(self, places: Places, of_groups: Sequence[Sequence[Tensor]]) -> None:
        """Let positions, states and counts lie in other buffers, of which each group has views."""
        for group, part, of_tokens in zip(self.groups, self.parts, of_groups, strict=True):
            group.move_to(places.length_YU[part], places.seen_Y[part], of_tokens)
        self._places = places
        self._pos_X, self._state_X, self._live_X, self.length_YU, self._seen_Y, self._first_YU = places

    def step(
        self,
        q_BHTD: Tensor,
        buffers: Buffers,
        scaling: float,
        new: NewTokens | None = None,
        cuts: Sequence[Cut] | None = None,
    ) -> None:
        """Let the policies act after the attention of a step whose tokens `quota` counts already.

        Args:
            cuts: what leaves each group, if `quota` has counted that already, too.
        """
        self._append(q_BHTD.shape[2])
        ids_BT = None if new is None else new.ids_BT
        of_groups: Sequence[Cut | None] = cuts or [None for _ in self.groups]
        dropped = [
            group.act(q_BHTD, buffers, scaling, ids_BT, cut) for group, cut in zip(self.groups, of_groups, strict=True)
        ]
        parts = zip(self.groups, self.parts, dropped, strict=True)
        dropping = [(group, part) for group, part, drop in parts if drop is not None]
        if dropping:
            # with its length as its limit, a head keeps all of its tokens
            idle = [(group.length_BU, group.length_BU) for group in self.groups]
            drops = [keep if drop is None else drop for keep, drop in zip(idle, dropped, strict=True)]
            column_YU, limit_YU = (torch.cat(xs) for xs in zip(*drops, strict=True))
            if self.host is None or any(group.follows_moves for group, _ in dropping):
                self._drop_one(column_YU, self.length_YU > limit_YU + self._buffer_Y1, dropping, buffers)
            else:
                self._hand_on(column_YU, limit_YU, dropping, buffers)
                self.drop(column_YU, limit_YU, buffers)

    def _append(self, new: int) -> None:
        """Give new tokens their positions and an empty state."""
        if self.host is not None:
            self.host.append(self._places, new)
            return
        ahead_T = torch.arange(new, device=self._pos_X.device)
        place_X = ((self._first_YU + self.length_YU)[..., None] + ahead_T).flatten()
        position_YT = self._seen_Y[:, None] + ahead_T.int()
        self._pos_X.index_copy_(0, place_X, position_YT.repeat_interleave(self.length_YU.shape[1], 0).flatten())
        self._state_X.index_fill_(0, place_X, 0.0)
        self._live_X.index_fill_(0, place_X, True)
        self.length_YU += new
        self._seen_Y += new

    def _drop_one(
        self, column_YU: Tensor, due_YU: Tensor, dropping: Sequence[tuple[PolicyGroup, slice]], buffers: Buffers
    ) -> None:
        """Drop a token from heads where one is due: the last slot takes its place. This is device work alone.

        Args:
            dropping: the groups whose heads may be due, with their rows.
        """
        last_YU = self.length_YU - 1  # not negative, after an append
        column_YU = torch.where(due_YU, column_YU, last_YU)
        for group, part in dropping:
            group.hand_on_one(column_YU[part], due_YU[part], buffers)
        slot, due = (self._start_YU + last_YU).flatten(), due_YU.flatten()
        copy_tokens((self._start_YU + column_YU).flatten(), slot, (buffers.k_RD, buffers.v_RD))
        place = (self._first_YU + last_YU).flatten()
        copy_tokens((self._first_YU + column_YU).flatten(), place, (self._pos_X, self._state_X))
        self._live_X.index_copy_(0, place, ~due)
        self.length_YU -= due_YU.long()
        end_slots(slot, due, buffers)
        buffers.length_S.index_add_(0, self._index_N, -due.to(buffers.length_S.dtype))
        for group, part in dropping:
            group.after_one(column_YU[part], last_YU[part], due_YU[part], buffers)

    def _hand_on(
        self, column_YU: Tensor, limit_YU: Tensor, dropping: Sequence[tuple[PolicyGroup, slice]], buffers: Buffers
    ) -> None:
        """Let tokens that stay take over something of those that leave heads above their limit."""
        for group, part in dropping:
            if group.policy.merges:
                due_BU = self.length_YU[part] > limit_YU[part] + self._buffer_Y1[part]
                group.hand_on_one(torch.where(due_BU, column_YU[part], self.length_YU[part] - 1), due_BU, buffers)

    def drop(self, column_YU: Tensor, limit_YU: Tensor, buffers: Buffers) -> None:
        """Drop a token from heads above their limit, on a CPU."""
        assert self.host is not None
        self.host.drop(
            self._places,
            buffers.k_RD,
            buffers.v_RD,
            buffers.length_S,
            start_YU=self._start_YU,
            segment_YU=self._index_N,
            column_YU=column_YU,
            limit_YU=limit_YU,
            buffer_Y=self._buffer_Y1,
        )


def _joined(holders: Sequence[object], name: str) -> Tensor:
    """Return one buffer for a tensor of several objects, which get views of it."""
    tensors = [getattr(holder, name) for holder in holders]
    joined = torch.cat([x.flatten() for x in tensors])
    for holder, x, part in zip(holders, tensors, joined.split([x.numel() for x in tensors]), strict=True):
        setattr(holder, name, part.view_as(x))
    return joined
