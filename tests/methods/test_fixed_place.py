"""The decode forms of PrefixKV and Elastic Cache against a list of positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.fixed_place import DropAtPlace
from kvbench.methods.decoding import Decoding
from tests.helpers.tiny_engine import generate, prompt, tiny_model
from tests.reference import fixed_place as naive

DIM = 4


def held(cache: Any) -> list[list[int]]:
    """Return the positions that each head of the only row holds."""
    if isinstance(cache, MaskedCache):
        return [head.nonzero().flatten().tolist() for head in cache._layers[0][0].keep_UN]
    (group,) = cache._arenas[0]._groups
    lengths = cache.lengths(0)[0]
    return [sorted(group.slots.pos_BUC[0, head, :length].tolist()) for head, length in enumerate(lengths)]


@pytest.mark.parametrize("kind", [RaggedCache, MaskedCache])
@pytest.mark.parametrize("distance", [-25, -3, -1, 0, 1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_held_positions_are_those_of_the_naive_twin(kind: type, distance: int, seed: int) -> None:
    """Heads that keep different numbers of tokens, more steps than the prompt has tokens."""
    rng = np.random.default_rng(seed)
    span = int(rng.integers(6, 70))
    heads = [sorted(rng.choice(span, size=int(n), replace=False).tolist()) for n in rng.integers(1, span + 1, size=3)]
    keep_UT = torch.zeros(3, span, dtype=torch.bool)
    for head, kept in enumerate(heads):
        keep_UT[head, kept] = True
    new = 80
    k = torch.randn(3, span + new, DIM)
    entry = Entry(0, keep_UT, new, decoding=Decoding(DropAtPlace(distance)), base_U=[len(kept) for kept in heads])
    cache = kind(1)
    cache.add(0, [entry], k[:, :span], k[:, :span])
    twins = [list(kept) for kept in heads]
    for position in range(span, span + new):
        now = k[None, :, position : position + 1]
        cache.attend(0, [0], now, now, now, 1.0)
        for u, kept in enumerate(heads):
            twins[u] = naive.step(twins[u], position, len(kept), span, naive.place_of(len(kept), distance))
        assert held(cache) == twins, f"after position {position}"


def test_every_layer_keeps_its_own_drop_ratio() -> None:
    """Layers of PrefixKV that kept a third and two thirds of the prompt hold these shares of all tokens."""
    tiny, span, new = tiny_model(), 60, 31
    ((out,),) = generate(tiny, [prompt(span)], [(kvbench.load_method("prefixkv_decode"), 0.5)], max_new_tokens=new)
    kept = [layer[0] for layer in out.kept]
    assert len(set(kept)) > 1 and sum(kept) == len(kept) * span // 2
    seen = span + new - 1
    assert out.kept_max == max(-(-n * seen // span) for n in kept)


@pytest.mark.parametrize("name", ["prefixkv_decode", "elastic_cache_decode"])
def test_a_full_budget_drops_nothing(name: str) -> None:
    tiny = tiny_model()
    ((out, full),) = generate(tiny, [prompt(40)], [(kvbench.load_method(name), 1.0), ("fullkv", None)])
    assert out.token_ids == full.token_ids


def test_the_place_needs_a_compressed_prefill() -> None:
    with pytest.raises(ValueError, match="method.phase=decode: must be one of both, prefill"):
        kvbench.load_method("prefixkv_decode", phase="decode")


def test_the_reference_computes_the_share_in_floats() -> None:
    """7 of 25 tokens: 50 * (1 - 18 / 25) is a hair above 14, so a 15th token stays."""
    numbers = [torch.tensor([[n]]) for n in (7, 25, 25)]
    exact, reference = (DropAtPlace(allocation=a).limit(*numbers[:2], 0, numbers[2]) for a in ("exact", "reference"))
    assert (int(exact), int(reference)) == (14, 15)
