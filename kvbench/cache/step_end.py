"""The end of a step, where the policies of all layers act at once: on a CPU, where a call costs more than its work.

What a policy does after the attention of a layer changes nothing for the layers that follow in the same step. So it can
wait for the last layer. Then the rows of a policy in all layers are as many rows of one call.

Shape suffixes: L layers, Y rows of all groups of a layer, B rows of a policy, U KV heads, C slots, X slots of all
layers and groups, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvbench.cache.base import NewTokens
from kvbench.cache.handed_on import hand_on
from kvbench.cache.observer import observe
from kvbench.cache.policy_group import PolicyGroup
from kvbench.cache.quota import Cut
from kvbench.cache.shared_slots import SharedSlots
from kvbench.methods import policy_answers
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots
from kvbench_kernels.backends import Buffers
from kvbench_kernels.ops.host_rows import HostRows, Places

AT_ONCE = 2**24  # attention weights of all layers that are held at once
PADDED = 2  # slots of all layers, padded to the longest, may be this many times as many as they are


class _Acted(NamedTuple):
    """A layer whose policies have acted alone."""

    slots: SharedSlots
    query_heads: int


@dataclass(frozen=True)
class _Owed:
    """The step of a layer whose policies have not acted yet."""

    slots: SharedSlots
    q_BHTD: Tensor
    buffers: Buffers
    scaling: float
    new: NewTokens | None
    cuts: Sequence[Cut]
    weights: Sequence[Tensor | None]

    def act(self) -> None:
        """Let the policies of the layer act without the others."""
        self.slots.step(self.q_BHTD, self.buffers, self.scaling, self.new, self.cuts)


class StepEnd:
    """The policies of all layers that act together. One object serves all layers of a cache.

    The first step of some rows is done layer by layer. Those that follow are done together, if the layers are alike.
    """

    def __init__(self) -> None:
        self._acted: dict[int, _Acted] = {}  # by layer, until all have acted once
        self._owed: dict[int, _Owed] = {}
        self._joined: JoinedLayers | None = None

    def __call__(
        self, layer: int, slots: SharedSlots, q_BHTD: Tensor, buffers: Buffers, scaling: float, new: NewTokens | None
    ) -> None:
        """Let the policies of a layer act now, or after the last layer of the step. The layer must not owe a step."""
        if self._joined is None and layer == min(self._acted, default=None):
            self._joined, self._acted = join_layers(self._acted), {}
        joined = self._joined
        if joined is not None and joined.layers.get(layer) is slots and q_BHTD.shape[2] == 1:
            cuts = [group.quota.cut() for group in slots.groups]
            weights = joined.weights(layer, q_BHTD, buffers, scaling, cuts)
            self._owed[layer] = _Owed(slots, q_BHTD, buffers, scaling, new, cuts, weights)
            if len(self._owed) == len(joined.layers):
                self.finish()
            return
        if joined is not None and joined.layers.get(layer) is not slots:
            self.forget()
        slots.step(q_BHTD, buffers, scaling, new)
        self._acted[layer] = _Acted(slots, q_BHTD.shape[1])

    def finish(self) -> None:
        """Let the policies act that have not yet."""
        owed, self._owed = self._owed, {}
        joined = self._joined
        if joined is not None and owed.keys() == joined.layers.keys() and all(map(_is_steady, owed.values())):
            joined.act(owed)
        else:
            for of_layer in owed.values():
                of_layer.act()

    def finish_layer(self, layer: int) -> None:
        """Let the policies of a layer act if they have not yet."""
        if layer in self._owed:
            self.finish()

    def forget(self) -> None:
        """Finish the step. The next one is done layer by layer, because rows have left or joined."""
        self.finish()
        self._joined, self._acted = None, {}


def _is_steady(owed: _Owed) -> bool:
    return all(cut.steady for cut in owed.cuts)


def join_layers(layers: Mapping[int, _Acted]) -> JoinedLayers | None:
    """Return the layers joined; None if their groups are not alike, or if they would need too much memory."""
    each, query_heads = [slots for slots, _ in layers.values()], max(heads for _, heads in layers.values())
    kinds = [
        ([(group.policy, group.rows) for group in slots.groups], slots.length_YU.shape[1], heads)
        for slots, heads in layers.values()
    ]
    if len(each) < 2 or each[0].host is None or any(kind != kinds[0] for kind in kinds):
        return None
    rows = [len(group.rows) for group in each[0].groups]
    widths = [max(slots.groups[i].slots.pos_BUC.shape[2] for slots in each) for i in range(len(rows))]
    together = len(each) * sum(b * width for b, width in zip(rows, widths, strict=True))
    alone = sum(b * group.slots.pos_BUC.shape[2] for slots in each for b, group in zip(rows, slots.groups, strict=True))
    if together > PADDED * alone or together * query_heads > AT_ONCE:
        return None
    return JoinedLayers({layer: slots for layer, (slots, _) in layers.items()}, each[0].host, widths)


class JoinedLayers:
    """The slots of the same groups in several layers, in common buffers.

    Those of each layer become views of them. So a layer can still act alone.

    Attributes:
        layers: the slots of each layer.
    """

    def __init__(self, layers: Mapping[int, SharedSlots], host: HostRows, widths: Sequence[int]) -> None:
        self.layers, self._host = dict(layers), host
        each = list(layers.values())
        count, (rows, heads), groups = len(each), each[0].length_YU.shape, each[0].groups
        self._parts = each[0].parts
        shapes = [(count, len(group.rows), heads, width) for group, width in zip(groups, widths, strict=True)]
        sizes = [int(np.prod(shape)) for shape in shapes]
        pos_X, state_X, live_X = (
            torch.zeros(sum(sizes), dtype=dtype) for dtype in (torch.int32, torch.float32, torch.bool)
        )
        place_X = torch.arange(sum(sizes))
        of_groups = [
            [x.view(shape) for x, shape in zip(x_X.split(sizes), shapes, strict=True)]
            for x_X in (pos_X, state_X, live_X, place_X)
        ]
        first_LYU = torch.cat([place_LBUC[..., 0] for place_LBUC in of_groups[3]], 1).contiguous()
        self._length_LYU = torch.empty(count, rows, heads, dtype=torch.int64)
        self._seen_LY = torch.empty(count, rows, dtype=torch.int32)
        for i, slots in enumerate(each):
            views = list(zip(*([x_LBUC[i] for x_LBUC in xs] for xs in of_groups[:3]), strict=True))
            places = Places(pos_X, state_X, live_X, self._length_LYU[i], self._seen_LY[i], first_LYU[i])
            slots.move_to(places, views)
        self._places = Places(
            pos_X, state_X, live_X, self._length_LYU.view(-1, heads), self._seen_LY.view(-1), first_LYU.view(-1, heads)
        )
        joined = zip(*of_groups[:3], strict=True)
        self._policies = [_Joined([slots.groups[i] for slots in each], *tensors) for i, tensors in enumerate(joined)]

    def weights(
        self, layer: int, q_BHTD: Tensor, buffers: Buffers, scaling: float, cuts: Sequence[Cut]
    ) -> list[Tensor | None]:
        """Return the attention that the groups of a layer observe, while its keys are in the processor's caches."""
        groups = self.layers[layer].groups
        return [
            group.weights(q_BHTD, buffers, scaling) if group.observes(cut) else None
            for group, cut in zip(groups, cuts, strict=True)
        ]

    def act(self, owed: Mapping[int, _Owed]) -> None:
        """Let the policies act after the attention of all layers, if at most one token leaves a head."""
        self._host.append(self._places, 1)
        in_order = [owed[layer] for layer in self.layers]
        columns, limits = [], []
        for i, (policy, part) in enumerate(zip(self._policies, self._parts, strict=True)):
            length_LBU, seen_LB = self._length_LYU[:, part], self._seen_LY[:, part]
            column_LBU, limit_LBU = policy.act(i, length_LBU, seen_LB, in_order, self._host)
            columns.append(column_LBU)
            limits.append(limit_LBU)
        column_LYU, limit_LYU = torch.cat(columns, 1), torch.cat(limits, 1)
        for i, of_layer in enumerate(in_order):
            if any(cut.leaves for cut in of_layer.cuts):
                of_layer.slots.drop(column_LYU[i], limit_LYU[i], of_layer.buffers)


class _Joined:
    """The rows of a policy in all layers, as rows of one layer."""

    def __init__(self, groups: Sequence[PolicyGroup], pos_LBUC: Tensor, state_LBUC: Tensor, live_LBUC: Tensor) -> None:
        self._groups, self._policy, self._shape = groups, groups[0].policy, pos_LBUC.shape[:3]
        self._backend = groups[0].backend
        self._buffer_B1 = torch.cat([group.buffer_B1 for group in groups])
        self._start_LBU = torch.stack([group.start_BU for group in groups])
        self._weights: Tensor | None = None  # of a step; fresh memory would cost more than what is written into it
        each = [group.slots for group in groups]
        self._slots = Slots(
            torch.cat([s.span_B for s in each]),
            torch.cat([s.seen_B for s in each]),
            pos_LBUC.flatten(0, 1),
            live_LBUC.flatten(0, 1),
            state_LBUC.flatten(0, 1),
            aligned=all(s.aligned for s in each),
            draws_BU1=torch.cat([s.draws_BU1 for s in each if s.draws_BU1 is not None]),
        )

    def act(
        self, index: int, length_LBU: Tensor, seen_LB: Tensor, owed: Sequence[_Owed], host: HostRows
    ) -> tuple[Tensor, Tensor]:
        """Return the columns of the tokens worth least, and the limits, both [L, B, U].

        Args:
            index: the place of the policy among those of each layer.
        """
        s, cuts = self._slots, [of_layer.cuts[index] for of_layer in owed]
        s.seen_B = seen_LB.flatten()
        weights = [of_layer.weights[index] for of_layer in owed]
        if any(x is not None for x in weights):
            observe(self._policy, s, self._together(self._all(weights, owed)))
        if not any(cut.leaves for cut in cuts):
            return length_LBU, length_LBU  # with its length as its limit, a head keeps all of its tokens
        length_BU = length_LBU.flatten(0, 1)
        s.limit_BU = torch.from_numpy(np.concatenate([cut.limit_BU for cut in cuts if cut.limit_BU is not None]))
        column_BU = self._backend.least(policy_answers.worth(self._policy, s), s.pos_BUC, length_BU)
        if self._policy.merges:
            self._hand_on(column_BU, length_BU, s.limit_BU, owed, host)
        return column_BU.view(self._shape), s.limit_BU.view(self._shape)

    def _together(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the weights of all layers as those of one. They are overwritten in the next step."""
        shape = torch.Size((len(weights), *weights[0].shape))
        if self._weights is None or self._weights.shape != shape:
            self._weights = weights[0].new_empty(shape)
        return torch.stack(tuple(weights), out=self._weights).flatten(0, 1)

    def _all(self, weights: Sequence[Tensor | None], owed: Sequence[_Owed]) -> list[Tensor]:
        """Return the weights of all layers. Where no token leaves, some policies did not ask for them."""
        return [
            group.weights(of_layer.q_BHTD, of_layer.buffers, of_layer.scaling) if x is None else x
            for x, group, of_layer in zip(weights, self._groups, owed, strict=True)
        ]

    def _hand_on(
        self, column_BU: Tensor, length_BU: Tensor, limit_BU: Tensor, owed: Sequence[_Owed], host: HostRows
    ) -> None:
        """Add to tokens that stay what they take over of those that leave."""
        due_BU = length_BU > limit_BU + self._buffer_B1
        leaving = Leaving.of_one(torch.where(due_BU, column_BU, length_BU - 1), due_BU, self._slots.live_BUC)
        shares, rows = policy_answers.shares(self._policy, self._slots, leaving), self._shape[1]
        for i, of_layer in enumerate(owed):
            part = slice(i * rows, (i + 1) * rows)
            of_rows = Shares(*(None if x is None else x[part] for x in shares))  # type: ignore[arg-type]
            leaves = Leaving(leaving.column_BUN[part], leaving.due_BUN[part], leaving.stays_BUC[part])
            hand_on(of_rows, leaves, of_layer.buffers, self._start_LBU[i], host)
