"""The answers of a decode policy, checked before a cache relies on them.

A wrong shape might pass by broadcasting, and compiled code would read another dtype as it is. The checks read shapes
and dtypes, for which no device has to wait, and numbers only on a CPU. NaN of a model is no fault of the policy: the
engine finds it in the logits.

Shape suffixes: as in `kvbench.methods.decoding`; N tokens that leave, M tokens that take over something.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.methods.decoding import DecodePolicy, Start
from kvbench.methods.nan import has_nan
from kvbench.methods.part_call import part_call
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots


def limits(policy: DecodePolicy, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor | None:
    """Return the limits of a policy, [B, U]; None if it has none.

    Raises:
        ValueError: they are no integers, of another shape, or negative.
    """
    with _calling(policy, "limit"):
        limit = policy.limit(base_BU, steps_B1, layer, span_B1)
    if limit is None:
        return None
    if not isinstance(limit, Tensor) or limit.is_floating_point() or limit.dtype == torch.bool:
        raise _refused(policy, "limit", limit, "a tensor of integers")
    try:
        limit_BU = limit.expand_as(base_BU)
    except RuntimeError:
        raise _refused(policy, "limit", limit, f"[rows, KV heads] = {list(base_BU.shape)}") from None
    if limit.device.type == "cpu" and bool((limit < 0).any()):
        raise ValueError(f"method: {type(policy).__name__}.limit returned {int(limit.min())}, must be 0 or more")
    return limit_BU


def worth(policy: DecodePolicy, slots: Slots) -> Tensor:
    """Return what the tokens are worth to a policy with limits, [B, U, C].

    Raises:
        ValueError: it returned no floating numbers, or another shape; or, on a CPU, NaN for a token without NaN as its
            state, or more tokens protected in a head than its limit.
    """
    with _calling(policy, "drop"):
        worth_BUC = policy.drop(slots)
    if not isinstance(worth_BUC, Tensor) or not worth_BUC.is_floating_point():
        raise _refused(policy, "drop", worth_BUC, "floating numbers, because the policy has limits")
    _check_shape(policy, "drop", worth_BUC, "[rows, KV heads, slots]", slots.pos_BUC.shape)
    if has_nan(worth_BUC) and bool((worth_BUC.isnan() & ~slots.state_BUC.isnan() & slots.live_BUC).any()):
        raise ValueError(f"method: {type(policy).__name__}.drop returned NaN for a token of the cache")
    if slots.limit_BU is not None and worth_BUC.device.type == "cpu":
        _check_protected(policy, slots.limit_BU, (worth_BUC == torch.inf) & slots.live_BUC)
    return worth_BUC


def gone(policy: DecodePolicy, slots: Slots) -> Tensor:
    """Return the mask [B, U, C] of the tokens that leave by a policy without limits.

    Raises:
        ValueError: it returned no mask, or another shape.
    """
    with _calling(policy, "drop"):
        gone_BUC = policy.drop(slots)
    if not isinstance(gone_BUC, Tensor) or gone_BUC.dtype != torch.bool:
        raise _refused(policy, "drop", gone_BUC, "torch.bool, because the policy has no limits")
    _check_shape(policy, "drop", gone_BUC, "[rows, KV heads, slots]", slots.pos_BUC.shape)
    return gone_BUC


def first_state(policy: DecodePolicy, start: Start) -> Tensor:
    """Return the state [U, C] from which a policy begins, float32.

    Raises:
        ValueError: it has another shape.
    """
    with _calling(policy, "begin"):
        state_UC = policy.begin(start)
    _check_shape(policy, "begin", state_UC, "[KV heads, slots]", start.pos_UC.shape)
    return state_UC.float()


def observe(policy: DecodePolicy, slots: Slots, weights_BUGTC: Tensor) -> None:
    """Give a policy the attention of a step.

    Raises:
        ValueError: it left a state of another shape; or, on a CPU, NaN in the state of a token, without NaN in the
            attention or in a state before.
    """
    had_nan = has_nan(slots.state_BUC)
    with _calling(policy, "observe"):
        policy.observe(slots, weights_BUGTC)
    _check_shape(policy, "observe", slots.state_BUC, "state_BUC: [rows, KV heads, slots]", slots.pos_BUC.shape)
    nan_is_new = not had_nan and has_nan(slots.state_BUC) and not has_nan(weights_BUGTC)
    if nan_is_new and bool((slots.state_BUC.isnan() & slots.live_BUC).any()):
        raise ValueError(f"method: {type(policy).__name__}.observe left NaN as the state of a token")


def shares(policy: DecodePolicy, slots: Slots, leaving: Leaving) -> Shares:
    """Return what tokens that stay take over of those that leave.

    On a GPU, `strangers` says later whether a share goes to a slot whose token does not stay.

    Raises:
        ValueError: a tensor has another dtype, or a shape that does not go with the others; or, on a CPU, a share goes
            to a slot whose token does not stay.
    """
    with _calling(policy, "shares"):
        of_policy = policy.shares(slots, leaving)
    into_BUNM = of_policy.into_BUNM
    if into_BUNM.dtype != torch.int64 or into_BUNM.shape[:-1] != leaving.column_BUN.shape:
        shape = f"int64, {list(leaving.column_BUN.shape)} and one dimension more"
        raise _refused(policy, "shares", into_BUNM, shape, "into_BUNM: ")
    for name, share_BUNM in (("value_BUNM", of_policy.value_BUNM), ("key_BUNM", of_policy.key_BUNM)):
        if share_BUNM is not None and (share_BUNM.dtype != torch.float32 or share_BUNM.shape != into_BUNM.shape):
            raise _refused(policy, "shares", share_BUNM, f"torch.float32, {list(into_BUNM.shape)}", f"{name}: ")
    if into_BUNM.device.type == "cpu" and bool(strangers(of_policy, leaving)):
        raise ValueError(
            f"method: {type(policy).__name__}.shares returned into_BUNM with a slot whose token does not stay; a share "
            "of 0 says that nothing goes there"
        )
    return of_policy


def strangers(of_policy: Shares, leaving: Leaving) -> Tensor:
    """Return True, as a scalar, if a share goes to a slot whose token does not stay. Device work alone."""
    slots, into_BUNM = leaving.stays_BUC.shape[2], of_policy.into_BUNM
    has_BUNM = of_policy.value_BUNM != 0
    if of_policy.key_BUNM is not None:
        has_BUNM = has_BUNM | (of_policy.key_BUNM != 0)
    stays_BUNM = leaving.stays_BUC.gather(2, into_BUNM.clamp(0, slots - 1).flatten(2)).view_as(into_BUNM)
    inside_BUNM = (into_BUNM >= 0) & (into_BUNM < slots)
    return (has_BUNM & leaving.due_BUN[..., None] & ~(stays_BUNM & inside_BUNM)).any()


def _calling(policy: DecodePolicy, name: str) -> part_call:
    return part_call(f"the decode policy {type(policy).__name__}.{name}")


def _check_protected(policy: DecodePolicy, limit_BU: Tensor, protected_BUC: Tensor) -> None:
    """Raise ValueError if a policy protects more tokens of a head than it may hold, so that one of them would leave."""
    count_BU = protected_BUC.sum(-1, dtype=torch.int32)  # half the time of a sum in 64 bits
    over_BU = count_BU > limit_BU
    if bool(over_BU.any()):
        count, limit = (int(x_BU[over_BU][0]) for x_BU in (count_BU, limit_BU))
        raise ValueError(
            f"method: {type(policy).__name__}.drop protects {count} tokens of a head that may hold {limit}; protect no "
            "more than slots.limit_BU"
        )


def _check_shape(policy: DecodePolicy, name: str, x: object, what: str, shape: Sequence[int]) -> None:
    if not isinstance(x, Tensor) or x.shape != torch.Size(shape):
        raise _refused(policy, name, x, f"{what} = {list(shape)}")


def _refused(policy: DecodePolicy, name: str, got: object, must: str, of: str = "") -> ValueError:
    shown = f"{got.dtype}, {list(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
    return ValueError(f"method: {type(policy).__name__}.{name} returned {of}{shown}, must be {must}")
