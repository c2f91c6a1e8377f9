"""The policies of rows that evict while decoding. They act after each attention call.

All rows of one policy in one layer form a `PolicyGroup`. What a policy knows of a token lies in tensors next to the
arena, column c of which is slot c of the segment. Lengths are counted on the host and on the device, by the same
rules, so no step waits for the device. The work that is the same for all policies is that of `SharedSlots`.

Shape suffixes: B rows, U KV heads, C slots (padded to the longest segment), T new tokens, n tokens that leave a head at
once, N segments, R slots of the arena, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvbench.cache.arena import Arena
from kvbench.cache.handed_on import hand_on
from kvbench.cache.leaving import end_slots, into_holes, move_tokens, worth_least
from kvbench.cache.observer import Observer
from kvbench.cache.pins import Pins
from kvbench.cache.policy_row import PolicyRow, stacked_slots
from kvbench.cache.quota import Cut, Quota
from kvbench.cache.turned import TurningKeys, TurningSlots
from kvbench.methods import policy_answers
from kvbench.methods.sharing import Leaving
from kvbench_kernels.backends import Backend, Buffers, Lanes

_OF_GPUS = ("cuda", "flash_attn")  # backends whose steps can be recorded; on a CPU their ops are for tests of that


class PolicyGroup:
    """The active rows of one policy in one layer.

    Args:
        rows: id and state of each row.
        places: place of each row in the batch.
        batch: rows of the batch.
        segments: per row, the index of the segment of each KV head.

    Attributes:
        length_BU: tokens that each head holds, on the device; changed in place.
        start_BU: the first slot of each head.
        buffer_B1: tokens that a head may hold above its limit.
        index_N: the segments.
    """

    def __init__(
        self,
        rows: Sequence[tuple[int, PolicyRow]],
        places: Sequence[int],
        batch: int,
        segments: Sequence[Sequence[int]],
        arena: Arena,
        layer: int,
        backend: Backend,
    ) -> None:
        self.rows, states = [i for i, _ in rows], [row for _, row in rows]
        self._states, self._layer, self.backend = states, layer, backend
        self.policy = states[0].decoding.policy
        device = arena.buffers.k_RD.device
        self.index = [index for of_row in segments for index in of_row]
        lengths = np.array([[arena.segments[i].length for i in of_row] for of_row in segments])
        self._capacity = np.array([[arena.segments[i].capacity for i in of_row] for of_row in segments])
        self.quota = Quota(states, lengths, layer)
        self._room = 0  # free slots that every head has at least
        self._by_host = device.type == "cpu" and backend.name not in _OF_GPUS
        self._places = places
        self._place_B = None if len(places) == batch else torch.tensor(places, device=device)
        self._lanes = Lanes(self.index, len(arena.segments), device)
        self.index_N = self._lanes.index_N
        self._observer = Observer(self.policy, backend, self.index, self._lanes, self._place_B)
        self.start_BU = torch.tensor([[arena.segments[i].start for i in row] for row in segments], device=device)
        self.length_BU = torch.tensor(lengths, device=device)
        self._base_BU = torch.tensor(self.quota.base_BU, device=device)
        self.buffer_B1 = torch.tensor(self.quota.buffer_B1, device=device)
        width = max(int(self._capacity.max()), *(row.pos_UC.shape[1] for row in states))
        self._columns_C = torch.arange(width, dtype=torch.int32, device=device)
        pins = [row.pins for row in states if row.pins is not None]
        self._pins = Pins(pins, width, device) if pins else None
        self.slots = stacked_slots(states, self.length_BU, width)
        if self._pins is not None:
            self.slots.numbers_BUX, self.slots.pinned_BUC = self._pins.numbers_BUX, self._pins.pinned_BUC
        self._turning: TurningKeys | TurningSlots | None = None
        turned, k_RD = [row.turned for row in states], arena.buffers.k_RD
        if self.policy.turns_all:  # here, because a recorded step must not make the tensors again
            self._turning = TurningSlots(self.slots, turned, width, k_RD, states[0].rotate)
            all_BU = torch.ones_like(self.length_BU, dtype=torch.bool)
            self._turning.turn(self.slots, arena.buffers, self.start_BU, self.length_BU, all_BU)
        elif self.policy.turns:
            self._turning = TurningKeys(self.policy, self.slots, turned, k_RD.shape[1], states[0].rotate)

    def leave(self) -> dict[int, PolicyRow]:
        """Return the rows as they are between two layouts."""
        s = self.slots
        for i, row in enumerate(self._states):
            width = max(1, int(self.quota.lengths_BU[i].max()))
            row.pos_UC, row.state_UC = s.pos_BUC[i, :, :width].clone(), s.state_BUC[i, :, :width].clone()
            row.seen, row.peak = int(self.quota.seen_B1[i, 0]), int(self.quota.peak_B[i])
            if self._pins is not None:
                row.pins = self._pins.leave(i, width, int(self.quota.pinned_B1[i, 0]))
            row.turned = None if self._turning is None else self._turning.of(i, width)
        return dict(zip(self.rows, self._states, strict=True))

    def check(self) -> None:
        """Wait for the device and check that its lengths are those on the host.

        Raises:
            RuntimeError: they differ, so the policy's `limit` depends on more than its arguments.
        """
        same = np.array_equal(self.length_BU.cpu().numpy(), self.quota.lengths_BU)
        # without a device, the limits of the host served for both
        if not same or (self._by_host and not self.quota.is_pure()):
            raise RuntimeError(f"{type(self.policy).__name__}: its limit differs between host and device")

    def peak(self, row: int) -> int:
        """Return the most tokens that a head of a row held after a step."""
        return int(self.quota.peak_B[self.rows.index(row)])

    def nbytes(self, row: int) -> int:
        """Return the bytes that the policy needs for a row, in addition to keys and values."""
        i = self.rows.index(row)
        of_plan = 0 if self._pins is None else self._pins.nbytes(i)
        of_keys = 0 if self._turning is None else self._turning.nbytes(i)
        return int(self.slots.pos_BUC[i].nbytes + self.slots.state_BUC[i].nbytes) + of_plan + of_keys

    def lacks_room(self, tokens: int) -> bool:
        """Return True if a head has no room for `tokens` more."""
        if self._room < tokens:  # it was counted some steps ago, and tokens may have left since
            self._room = int((self._capacity - self.quota.lengths_BU).min())
        return self._room < tokens

    @property
    def needs_host(self) -> bool:
        """True if `act` waits for the device in every step, because a mask says which tokens leave."""
        return self.quota.masks_every_step

    @property
    def follows_moves(self) -> bool:
        """True if a plan or turned keys must move with the tokens, in addition to what every policy knows of them."""
        return self._pins is not None or self._turning is not None

    def grow(self, tokens: int, ids: Sequence[Sequence[int]] | None) -> None:
        """Count the tokens of a step, given by their ids if these are known; `act` follows.

        Args:
            ids: of all rows of the batch.
        """
        pinned_B1 = None
        if self._pins is not None and ids is not None:
            pinned_B1 = self._pins.count([ids[place] for place in self._places])
        self.quota.grow(tokens, pinned_B1)
        self._room -= tokens

    def advance(self, ids: Sequence[Sequence[int]]) -> None:
        """Count the token of each row that a recorded step appended, and those that left.

        If `act` needs the host, it is no part of the recording, and counts by itself what leaves.
        """
        self.grow(1, ids)
        if not self.needs_host:
            self.quota.cut()

    def can_record(self) -> bool:
        """Return True if the next step of one token is work for the device alone, or is done by the host each time."""
        return not self.lacks_room(1) and (self.needs_host or self.quota.next_is_steady())

    @property
    def can_wait(self) -> bool:
        """True if the policy may act at the end of a step, with its rows in other layers."""
        return self._by_host and self.quota.has_limit and not self.follows_moves

    def observes(self, cut: Cut) -> bool:
        """Return True if the policy needs the attention of a step after which these tokens leave."""
        return self.policy.reads != "nothing" and (cut.leaves or self.policy.remembers)

    def weights(self, q_BHTD: Tensor, buffers: Buffers, scaling: float) -> Tensor:
        """Return the attention [B, U, G, T, C] of the newest queries of the batch to the rows."""
        return self._observer.weights(self.slots, q_BHTD, buffers, scaling)

    def move_to(self, length_BU: Tensor, seen_B: Tensor, of_tokens: Sequence[Tensor]) -> None:
        """Let what the policy knows lie in other tensors: lengths, tokens seen, and pos, state, live [B, U, C]."""
        s, columns = self.slots, self.slots.pos_BUC.shape[2]
        length_BU.copy_(self.length_BU)
        seen_B.copy_(s.seen_B)
        for to_BUC, x_BUC in zip(of_tokens, (s.pos_BUC, s.state_BUC, s.live_BUC), strict=True):
            to_BUC[..., :columns] = x_BUC
        self.length_BU, s.seen_B = length_BU, seen_B
        s.pos_BUC, s.state_BUC, s.live_BUC = of_tokens
        self._columns_C = torch.arange(s.pos_BUC.shape[2], dtype=torch.int32, device=s.pos_BUC.device)

    def act(
        self, q_BHTD: Tensor, buffers: Buffers, scaling: float, ids_BT: Tensor | None, cut: Cut | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Let the policy act after the attention of a step, whose tokens have slots already.

        Args:
            cut: what leaves, if `quota` has counted it already.

        Returns:
            The columns [B, U] of the tokens worth least, and the limits [B, U], if a token leaves each head that is
            above its limit. None if the step is done.
        """
        s = self.slots
        if self._pins is not None:
            self._pin(q_BHTD.shape[2], ids_BT)
        if self._by_host and self.quota.has_limit:  # nothing is recorded, and the host knows what leaves
            return self._act_on_host(q_BHTD, buffers, scaling, cut or self.quota.cut())
        self._observer(s, q_BHTD, buffers, scaling)
        steps_B1 = (s.seen_B - s.span_B)[:, None].long()
        s.limit_BU = policy_answers.limits(self.policy, self._base_BU, steps_B1, self._layer, s.span_B[:, None].long())
        if s.limit_BU is not None and self._pins is not None:
            s.limit_BU = s.limit_BU + self._pins.pinned_BU
        if not self.quota.has_limit:
            self._mask(buffers)
            return None
        cut = self.quota.cut()
        if not cut.steady:
            self._remove(
                worth_least(self.slots, self._worth(), torch.tensor(cut.counts_BU, device=q_BHTD.device)), buffers
            )
        if not cut.steady or not cut.may_drop:
            return None
        assert s.limit_BU is not None
        return self.backend.least(self._worth(), s.pos_BUC, self.length_BU), s.limit_BU

    def _act_on_host(self, q_BHTD: Tensor, buffers: Buffers, scaling: float, cut: Cut) -> tuple[Tensor, Tensor] | None:
        """Do what `act` does with the limits that the host has counted. Skip what changes nothing."""
        s = self.slots
        if self.observes(cut):
            self._observer(s, q_BHTD, buffers, scaling)
        if not cut.leaves:
            return None
        assert cut.limit_BU is not None
        s.limit_BU = torch.from_numpy(cut.limit_BU)
        if not cut.steady:
            self._remove(worth_least(self.slots, self._worth(), torch.from_numpy(cut.counts_BU)), buffers)
            return None
        return self.backend.least(self._worth(), s.pos_BUC, self.length_BU), s.limit_BU

    def hand_on_one(self, column_BU: Tensor, due_BU: Tensor, buffers: Buffers) -> None:
        """Let tokens that stay take over something of those in these columns, before they leave heads where due."""
        if self.policy.merges:
            self._hand_on(Leaving.of_one(column_BU, due_BU, self.slots.live_BUC), buffers)

    def after_one(self, column_BU: Tensor, last_BU: Tensor, due_BU: Tensor, buffers: Buffers) -> None:
        """Finish a step in which the last token of each head moved to a column, and heads where due lost a token."""
        s = self.slots
        if s.pinned_BUC is not None:
            s.pinned_BUC.scatter_(2, column_BU[..., None], s.pinned_BUC.gather(2, last_BU[..., None]))
        if self._turning is not None:
            self._turning.move(column_BU[..., None], last_BU[..., None])
            self._turning.turn(s, buffers, self.start_BU, self.length_BU, due_BU)

    def _mask(self, buffers: Buffers) -> None:
        """Remove what a policy without a limit says. This waits for the device."""
        s, due_B1 = self.slots, self.quota.scheduled()
        if due_B1.any():
            due_B11 = torch.tensor(due_B1, device=s.pos_BUC.device)[..., None]
            gone_BUC = policy_answers.gone(self.policy, s) & s.live_BUC & due_B11
            self._remove(gone_BUC if s.pinned_BUC is None else gone_BUC & ~s.pinned_BUC, buffers)
            self.quota.settle(self.length_BU.cpu().numpy())
        else:
            self.quota.settle(self.quota.lengths_BU)

    def _worth(self) -> Tensor:
        """Return what the tokens are worth to the policy [B, U, C]; inf for those that are pinned."""
        worth_BUC, pinned_BUC = policy_answers.worth(self.policy, self.slots), self.slots.pinned_BUC
        return worth_BUC if pinned_BUC is None else worth_BUC.masked_fill(pinned_BUC, torch.inf)

    def _pin(self, new: int, ids_BT: Tensor | None) -> None:
        """Pin some of the new tokens by their ids."""
        assert self._pins is not None
        column_BUT = self.length_BU[..., None] + torch.arange(-new, 0, device=self.length_BU.device)
        self._pins.append(ids_BT if ids_BT is None or self._place_B is None else ids_BT[self._place_B], column_BUT)

    def _remove(self, gone_BUC: Tensor, buffers: Buffers) -> None:
        """Remove any number of tokens from each head; slots past the new length move into the holes before it."""
        s = self.slots
        count_BU = gone_BUC.sum(-1)
        most = int(count_BU.max())
        if most == 0:
            return
        if self.policy.merges:
            self._hand_on(Leaving.of(gone_BUC, s.pos_BUC, s.live_BUC, most), buffers)
        to_BUn, source_BUn, past_BUn = into_holes(gone_BUC, s.live_BUC, self.length_BU, count_BU, most)
        move_tokens(s, to_BUn, source_BUn, buffers, self.start_BU)
        end_slots((self.start_BU[..., None] + past_BUn).flatten(), (count_BU > 0).repeat_interleave(most), buffers)
        self.length_BU -= count_BU
        s.live_BUC.copy_(self._columns_C < self.length_BU[..., None].int())
        if self._turning is not None:
            self._turning.move(to_BUn, source_BUn)
            self._turning.turn(s, buffers, self.start_BU, self.length_BU, count_BU > 0)
        buffers.length_S.index_add_(0, self.index_N, -count_BU.flatten().to(buffers.length_S.dtype))

    def _hand_on(self, leaving: Leaving, buffers: Buffers) -> None:
        """Add to tokens that stay what they take over of those that leave."""
        shares = policy_answers.shares(self.policy, self.slots, leaving)
        hand_on(shares, leaving, buffers, self.start_BU, self.backend.host)
