"""The attention that a decode policy observes: that of the newest queries of its rows in one layer.

Shape suffixes: B rows, H query heads, U KV heads, G query heads per KV head, N segments (row x KV head), C slots
(padded to the longest segment), T new tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvbench.methods import policy_answers
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.slots import Slots
from kvbench_kernels.backends import Backend, Buffers, Lanes

AT_ONCE = 2**26  # attention weights that are held at once; those of a long question are observed row by row


class Observer:
    """The observation of a step by a policy, which updates the state of its tokens.

    Args:
        index: the index of the segment of each row and KV head.
        lanes: these segments.
        place_B: the place of each row in the batch; None if the rows are the batch.
    """

    def __init__(
        self, policy: DecodePolicy, backend: Backend, index: Sequence[int], lanes: Lanes, place_B: Tensor | None
    ) -> None:
        self._policy, self._backend = policy, backend
        self._index, self._lanes, self._place_B = index, lanes, place_B

    def __call__(self, slots: Slots, q_BHTD: Tensor, buffers: Buffers, scaling: float) -> None:
        """Give the policy the attention of the newest queries: all rows at once, unless a question makes it large."""
        if self._policy.reads == "nothing":
            return
        if self._policy.reads == "last":
            q_BHTD = q_BHTD[:, :, -1:]
        if self._place_B is not None:
            q_BHTD = q_BHTD[self._place_B]
        rows, heads, width = slots.pos_BUC.shape
        together = max(1, AT_ONCE // (q_BHTD.shape[1] * q_BHTD.shape[2] * width))
        if q_BHTD.shape[2] == 1 or together >= rows:
            self._observe(slots, q_BHTD, self._lanes, buffers, scaling)
            return
        segments = len(self._lanes.query_S)
        for first in range(0, rows, together):
            part = slice(first, first + together)
            lanes = Lanes(self._index[first * heads : (first + together) * heads], segments, q_BHTD.device)
            self._observe(slots.rows(part), q_BHTD[part], lanes, buffers, scaling)

    def weights(self, slots: Slots, q_BHTD: Tensor, buffers: Buffers, scaling: float) -> Tensor:
        """Return the attention [B, U, G, T, C] of the newest queries of the batch."""
        own_BHTD = q_BHTD if self._place_B is None else q_BHTD[self._place_B]
        return self._weights(slots, own_BHTD, self._lanes, buffers, scaling)

    def _observe(self, slots: Slots, q_BHTD: Tensor, lanes: Lanes, buffers: Buffers, scaling: float) -> None:
        observe(self._policy, slots, self._weights(slots, q_BHTD, lanes, buffers, scaling))

    def _weights(self, slots: Slots, q_BHTD: Tensor, lanes: Lanes, buffers: Buffers, scaling: float) -> Tensor:
        rows, heads, width = slots.pos_BUC.shape
        q_NGTD = q_BHTD.unflatten(1, (heads, -1)).flatten(0, 1)
        weights_NGTC = self._backend.weights(q_NGTD, buffers, lanes, scaling, width)
        return weights_NGTC.view(rows, heads, *weights_NGTC.shape[1:])


def observe(policy: DecodePolicy, slots: Slots, weights_BUGTC: Tensor) -> None:
    """Give a policy the attention of a step. It updates the state of its tokens, which stays where it is."""
    state_BUC = slots.state_BUC
    policy_answers.observe(policy, slots, weights_BUGTC)
    if slots.state_BUC is not state_BUC:  # a recorded step must find the state where it was
        state_BUC.copy_(slots.state_BUC)
        slots.state_BUC = state_BUC
