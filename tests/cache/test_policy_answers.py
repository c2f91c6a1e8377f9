"""Faulty answers of decode policies: each is an error of one line in every cache, before memory is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kvbench.cache.handed_on import hand_on
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods import policy_answers
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decoding import DecodePolicy, Decoding, Start
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots
from kvbench_kernels.backends import Buffers, make_backend
from tests.helpers.step_end import Run

CACHES: dict[str, Callable[[], Any]] = {
    "cpu": lambda: RaggedCache(2, make_backend("cpu")),
    "torch": lambda: RaggedCache(2, make_backend("torch")),
    "masked": lambda: MaskedCache(2),
}


@dataclass(frozen=True)
class ToOldest(SlidingWindow):
    """Hands the values of what leaves on to the two oldest tokens, as `alter` changes that."""

    alter: Callable[[Tensor, Tensor, Tensor], Shares] = lambda into, share, oldest: Shares(into, share)
    merges: ClassVar[bool] = True

    def shares(self, slots: Slots, leaving: Leaving) -> Shares:
        oldest_BUC = torch.where(leaving.stays_BUC, slots.pos_BUC, 2**30).argsort(-1)
        into_BUNM = oldest_BUC[:, :, None, :2].expand(-1, -1, leaving.column_BUN.shape[2], -1)
        return self.alter(into_BUNM, torch.tensor([0.2, 0.1]).expand_as(into_BUNM), leaving.column_BUN[..., None])


@dataclass(frozen=True)
class Altered(AccumulateAndEvict):
    """Accumulates attention; `alter` changes what one of its functions returns."""

    name: str = ""
    alter: Callable[[Tensor], Any] = lambda x: x

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Any:
        return self.alter(base_BU) if self.name == "limit" else base_BU

    def begin(self, start: Start) -> Tensor:
        state_UC = super().begin(start)
        return self.alter(state_UC) if self.name == "begin" else state_UC

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        super().observe(slots, weights_BUGTC)
        if self.name == "observe":
            slots.state_BUC = self.alter(slots.state_BUC)

    def drop(self, slots: Slots) -> Tensor:
        worth_BUC = super().drop(slots)
        return self.alter(worth_BUC) if self.name == "drop" else worth_BUC


@dataclass(frozen=True)
class Unlimited(DecodePolicy):
    """A policy without limits, whose mask `alter` changes."""

    alter: Callable[[Tensor], Tensor] = lambda x: x

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> None:
        return None

    def drop(self, slots: Slots) -> Tensor:
        return self.alter(slots.pos_BUC < slots.seen_B[:, None, None] - 9)


def altered(name: str, alter: Callable[[Tensor], Any]) -> DecodePolicy:
    return Altered(window=2, name=name, alter=alter)


def handing(alter: Callable[[Tensor, Tensor, Tensor], Shares]) -> DecodePolicy:
    return ToOldest(2, alter=alter)


STRANGER = "ToOldest.shares returned into_BUNM with a slot whose token does not stay"
ODD: dict[str, tuple[DecodePolicy, str]] = {
    "slots as int32": (handing(lambda i, s, o: Shares(i.int(), s)), "ToOldest.shares returned into_BUNM: torch.int32"),
    "slots without a dimension": (handing(lambda i, s, o: Shares(i[..., 0], s)), "ToOldest.shares returned into_BUNM"),
    "shares as float64": (handing(lambda i, s, o: Shares(i, s.double())), "value_BUNM: torch.float64"),
    "shares of keys as bfloat16": (handing(lambda i, s, o: Shares(i, s, s.bfloat16())), "key_BUNM: torch.bfloat16"),
    "shares of one head": (handing(lambda i, s, o: Shares(i, s[:, :1])), r"value_BUNM: torch.float32, \[., 1, 1, 2\]"),
    "a share for two": (handing(lambda i, s, o: Shares(i, s[..., :1])), r"value_BUNM: torch.float32, \[., 2, 1, 1\]"),
    "slots far away": (handing(lambda i, s, o: Shares(i + 10**7, s)), STRANGER),
    "slots of other heads": (handing(lambda i, s, o: Shares(i + 40, s)), STRANGER),
    "slots before": (handing(lambda i, s, o: Shares(i - 1000, s)), STRANGER),
    "the slot that leaves": (handing(lambda i, s, o: Shares(o.expand_as(i), s)), STRANGER),
    "the key's slot that leaves": (handing(lambda i, s, o: Shares(o.expand_as(i), s * 0, s)), STRANGER),
    "negative limits": (altered("limit", lambda x: x * 0 - 3), "Altered.limit returned -3, must be 0 or more"),
    "a number as limit": (altered("limit", lambda x: 5), "Altered.limit returned int, must be a tensor of integers"),
    "limits as a mask": (altered("limit", lambda x: x > 0), "Altered.limit returned torch.bool"),
    "limits of tokens": (altered("limit", lambda x: x[..., None]), r"Altered.limit .* must be \[rows, KV heads\]"),
    "worth of integers": (altered("drop", lambda x: x.int()), "Altered.drop returned torch.int32, .* floating numbers"),
    "a mask with limits": (altered("drop", lambda x: x > 0), "Altered.drop returned torch.bool, .* floating numbers"),
    "worth of one row": (altered("drop", lambda x: x[0]), r"Altered.drop .* must be \[rows, KV heads, slots\]"),
    "worth of one head": (altered("drop", lambda x: x[:, :1]), r"Altered.drop .* must be \[rows, KV heads, slots\]"),
    "worth of heads": (altered("drop", lambda x: x[..., :1]), r"Altered.drop .* must be \[rows, KV heads, slots\]"),
    "protection of all": (
        altered("drop", lambda x: x + torch.inf),
        r"Altered.drop protects \d+ tokens of a head that may hold \d+; protect no more than slots.limit_BU",
    ),
    "worth of NaN": (altered("drop", lambda x: x * torch.nan), "Altered.drop returned NaN"),
    "states of NaN": (altered("observe", lambda x: x / 0 * 0), "Altered.observe left NaN"),
    "states of heads": (altered("observe", lambda x: x[..., :1]), "Altered.observe returned .* state_BUC"),
    "first states of heads": (altered("begin", lambda x: x[:, :1]), r"Altered.begin .* must be \[KV heads, slots\]"),
    "a mask of numbers": (
        Unlimited(lambda x: x.float()),
        "Unlimited.drop returned torch.float32, .* must be torch.bool",
    ),
    "a mask of one head": (Unlimited(lambda x: x[:, :1]), r"Unlimited.drop .* must be \[rows, KV heads, slots\]"),
}


def play(cache: Any, policy: DecodePolicy) -> Run:
    run = Run(cache, 2, reserve=20)
    run.add([Decoding(policy)] * 2)
    for _ in range(6):  # the second step, and those that follow, are those of all layers together
        run.step()
    run.look()
    return run


@pytest.mark.gxx
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("cache", CACHES)
def test_what_a_policy_must_not_return_is_one_line(cache: str, name: str) -> None:
    policy, message = ODD[name]
    with pytest.raises(ValueError, match=f"^method: .*{message}") as caught:
        play(CACHES[cache](), policy)
    assert "\n" not in str(caught.value)


@pytest.mark.gxx
def test_the_layers_together_check_as_a_layer_alone_does() -> None:
    """The first step is done layer by layer, and shows the fault; here it comes later."""

    @dataclass(frozen=True)
    class Later(ToOldest):
        def shares(self, slots: Slots, leaving: Leaving) -> Shares:
            of_policy = super().shares(slots, leaving)
            late = (slots.seen_B > 21)[:, None, None, None]
            return of_policy._replace(into_BUNM=torch.where(late, of_policy.into_BUNM + 10**7, of_policy.into_BUNM))

    with pytest.raises(ValueError, match="Later.shares returned into_BUNM with a slot"):
        play(CACHES["cpu"](), Later(2))


@pytest.mark.gxx
@pytest.mark.parametrize("cache", CACHES)
def test_what_a_policy_may_return(cache: str) -> None:
    """Limits of rows, slots that get nothing and need not exist, and worth in another precision."""
    expected = play(CACHES[cache](), ToOldest(2)).outs
    away = handing(lambda i, s, o: Shares(torch.cat([i, i + 10**7], -1), torch.cat([s, s * 0], -1)))
    torch.testing.assert_close(play(CACHES[cache](), away).outs, expected)
    of_rows = play(CACHES[cache](), altered("limit", lambda x: x[:, :1] * 0 + 5))
    assert of_rows.cache.lengths(0) == [[5, 5], [5, 5]]
    plain, half = (play(CACHES[cache](), altered("drop", alter)) for alter in (lambda x: x, lambda x: x.double()))
    assert all(map(torch.equal, plain.outs, half.outs))


@pytest.mark.gxx
def test_nan_of_a_model_is_left_to_the_engine() -> None:
    run = Run(CACHES["cpu"](), 2, reserve=20)
    run.add([Decoding(AccumulateAndEvict(window=2))] * 2)
    run.step()
    run.randn = lambda *shape: torch.full(shape, torch.nan)  # type: ignore[method-assign]
    for _ in range(3):
        run.step()
    assert bool(run.outs[-1].isnan().all())


def test_a_device_notes_a_share_that_goes_astray() -> None:
    """On a GPU nothing may wait. There the status of the buffers says it, and a slot of the head is written."""
    leaving = Leaving(torch.tensor([[[1]]]), torch.tensor([[[True]]]), torch.tensor([[[True, False, True]]]))
    for into, due, astray in ((0, True, False), (1, True, True), (3, True, True), (-1, True, True), (9, False, False)):
        of_policy = Shares(torch.tensor([[[[into]]]]), torch.ones(1, 1, 1, 1))
        leaves = Leaving(leaving.column_BUN, torch.tensor([[[due]]]), leaving.stays_BUC)
        assert bool(policy_answers.strangers(of_policy, leaves)) == astray, into
        buffers = Buffers(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(1).int(), torch.zeros(0).int(), 3)
        hand_on(of_policy, leaves, buffers, torch.tensor([[0]]))  # raises if it is written elsewhere
        if astray:
            with pytest.raises(ValueError, match="^method: the shares of a decode policy went to a slot"):
                buffers.check()
        else:
            buffers.check()
