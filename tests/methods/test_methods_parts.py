"""The parts that `keep` does not reach, against their naive twins: KIVI's quantiser, H2O's eviction per step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from tests.helpers.holding import Holding
from tests.reference import h2o_decode, kivi, scores


def kivi_store(**dials: int) -> Any:
    """Return KIVI's storage part."""
    return kvbench.load_method("kivi", **dials).store


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_kivi_groups_keys_along_tokens_and_values_along_channels(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    group = int(rng.choice([4, 8]))
    x_ND = rng.normal(size=(group * int(rng.integers(1, 5)), group * int(rng.integers(1, 4))))
    x_ND[:group, 0] = 0.25  # a constant group of keys must come back as it is
    x_ND[0, :group] = -0.5  # and one of values
    store = kivi_store(bits=bits, group_size=group, residual=2 * group)
    for half, restored in ((store.keys, kivi.quantise_keys), (store.values, kivi.quantise_values)):
        encoded = half.encode(torch.tensor(x_ND).unflatten(0, (-1, half.block)), None, None)
        held_ND = half.decode(encoded, None, x_ND.shape[1]).flatten(0, 1).numpy()
        np.testing.assert_allclose(held_ND, restored(x_ND, bits, group), atol=1e-12)
        assert encoded[0].numel() == x_ND.size * bits // 8


def test_kivi_reproduces_the_printed_codes() -> None:
    # Times 20, so that 0.0 is an exact half and rounds to even, as printed.
    group_ND = torch.tensor([[0.0, 2, 10, 18, 20, -4, 6.6, 14]], dtype=torch.float64)
    expected = {2: [0, 1, 2, 3, 3, 0, 1, 2], 4: [2, 4, 9, 14, 15, 0, 7, 11]}
    for bits, codes in expected.items():
        store = kivi_store(bits=bits, group_size=8, residual=8)
        restored = store.values.decode(store.values.encode(group_ND[:, None], None, None), None, 8)
        np.testing.assert_allclose(restored[0, 0].numpy(), np.array(codes) * 24 / (2**bits - 1) - 4, atol=1e-12)


@pytest.mark.parametrize("residual", [4, 8])
@pytest.mark.parametrize("prompt", range(1, 20))
def test_kivi_encodes_what_the_published_flow_encodes(prompt: int, residual: int) -> None:
    store = kivi_store(bits=2, group_size=4, residual=residual)
    for seen in range(prompt, prompt + 3 * residual):
        encoded = tuple(half.encoded(seen, prompt) for half in (store.keys, store.values))
        assert encoded == kivi.quantised_tokens(prompt, seen, residual)


@pytest.mark.parametrize(("dials", "named"), [({"bits": 3}, "bits"), ({"residual": 100}, "residual")])
def test_kivi_refuses_what_does_not_divide(dials: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b") as caught:
        kvbench.load_method("kivi", **dials)
    assert "\n" not in str(caught.value)


def test_h2o_decode_reproduces_the_printed_step() -> None:
    policy = AccumulateAndEvict(window=2)
    held = Holding(policy, 3, [0, 2, 3], torch.tensor([1.9, 0.6, 0.4]))
    kept, state = held.step(torch.tensor([0.4, 0.1, 0.2, 0.3]).view(1, 1, 4))
    assert kept == [0, 3, 4]
    torch.testing.assert_close(state, torch.tensor([2.3, 0.6, 0.3]))


@pytest.mark.parametrize("window", [0.5, 3])
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
@pytest.mark.parametrize("seed", range(4))
def test_h2o_decode_accumulates_and_evicts_like_the_loop(seed: int, reduce: str, window: float) -> None:
    rng = np.random.default_rng(seed)
    group, prompt, budget = (int(rng.integers(low, high)) for low, high in ((1, 4), (4, 30), (6, 16)))
    steps = 25
    recent = budget // 2 if window == 0.5 else 3
    q_GTD, k_UTD = rng.normal(size=(group, prompt + steps, 8)), rng.normal(size=(1, prompt + steps, 8))

    def attention(positions: list[int]) -> np.ndarray:
        """Return the softmax of the newest position's queries over the stored positions [G, S]."""
        logits = q_GTD[:, positions[-1]] @ k_UTD[0, positions].T
        weights = np.exp(logits)
        return weights / weights.sum(axis=1, keepdims=True)

    def row(positions: list[int]) -> list[float]:
        return list(scores.reduce_groups(attention(positions), 1, reduce)[0])

    # One reduced row per prompt query would not equal the reduced column sums for `max`: begin from the sums.
    sums = list(scores.column_sums(q_GTD[:, :prompt], k_UTD[:, :prompt], reduce)[0])
    state = h2o_decode.evict(list(range(prompt)), sums, budget - recent, recent)

    method = kvbench.load_method("h2o_decode", window=window, reduce=reduce)
    q, k = torch.tensor(q_GTD[:, :prompt]), torch.tensor(k_UTD[:, :prompt])
    kept = method.keep(q, k, k, budget=budget)[0].tolist()
    assert kept == state[0]
    assert method.decode is not None
    held = Holding(method.decode.policy, budget, kept, torch.tensor(sums)[kept], span=prompt)
    for position in range(prompt, prompt + steps):
        now = [*held.kept, position]
        kept, acc = held.step(torch.tensor(attention(now))[:, None])
        state = h2o_decode.step(*state, position, row, budget - recent, recent)
        assert kept == state[0] and len(kept) <= budget
        np.testing.assert_allclose(acc.numpy(), state[1], rtol=1e-5)
