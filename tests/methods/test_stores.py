"""Storage methods against their naive twins: channels, codes, and bytes, alone and together with eviction.

Shape suffixes: H query heads, U KV heads, T tokens, N blocks, D head dimension, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.context import LayerContext
from tests.reference import kivi, think, tva


def prepared(store: Any, q: np.ndarray, k: np.ndarray, keep_UT: np.ndarray) -> Any:
    """Return the channels [U, C] that ThinK keeps."""
    ctx = LayerContext(torch.tensor(q), torch.tensor(k), torch.tensor(k))
    side, _ = store.prepare(ctx, torch.tensor(keep_UT), ctx.k, ctx.v)
    return side.head


@pytest.mark.parametrize("seed", range(20))
def test_think_keeps_the_channels_of_the_reference(seed: int) -> None:
    """Whole numbers make ties; then any choice among equal channels is right."""
    rng = np.random.default_rng(seed)
    heads, group, tokens, dim = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(5, 40)), 16

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-2, 3, shape).astype(float) if seed % 2 else rng.normal(size=shape)

    q, k = draw(heads * group, tokens, dim), draw(heads, tokens, dim)
    keep_UT = rng.random((heads, tokens)) < rng.random((heads, 1)) + 0.2
    keep_UT[:, -1] = True
    ratio, queries = float(rng.choice([0.1, 0.4, 0.55])), int(rng.integers(1, 40))
    store = kvbench.load_method("think", ratio=ratio, queries=queries, recent=2).store
    weights_UD = think.channel_weights(q[:, -queries:], [k[u, keep_UT[u]] for u in range(heads)])
    for channels, weights_D in zip(prepared(store, q, k, keep_UT).tolist(), weights_UD, strict=True):
        must, may, count = think.dropped(weights_D.round(9), ratio)
        gone = set(range(dim)) - set(channels)
        assert channels == sorted(channels) and len(gone) == count
        assert must <= gone <= must | may


def test_think_drops_the_printed_channels() -> None:
    """The printed scores are per query head, so every query head gets keys of its own."""
    q, k, _ = tva.tensors()
    k = k.repeat(2, axis=0)
    printed = [
        [5.755551, 3.043081, 2.383114, 6.844442],
        [5.419363, 0.920275, 5.977417, 5.575816],
        [3.378239, 1.820439, 7.299254, 2.273282],
        [1.077335, 5.174814, 6.518784, 0.699492],
    ]
    np.testing.assert_allclose(think.channel_weights(q[:, -3:], list(k)), printed, atol=1e-6)
    store = kvbench.load_method("think", ratio=0.25, queries=3, recent=0).store
    channels = prepared(store, q, k, np.ones((4, 16), dtype=bool))
    assert [set(range(4)) - set(row) for row in channels.tolist()] == [{2}, {1}, {1}, {3}]


def test_think_prunes_old_prompt_tokens_alone() -> None:
    half = kvbench.load_method("think", recent=8).store.keys  # type: ignore[union-attr]
    assert half is not None
    for kept in (0, 3, 8, 9, 40):
        for more in (0, 1, 50):
            assert half.encoded(kept + more, kept) == think.pruned_tokens(kept, 8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_kivi_codes_are_those_of_the_reference(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    group, dim = 8, 16
    x_NBD = rng.normal(size=(3, group, dim)) if seed % 2 else rng.integers(-3, 4, (3, group, dim)) / 4
    store: Any = kvbench.load_method("kivi", bits=bits, group_size=group, residual=group).store
    keys = codes_of(store.keys.encode(torch.tensor(x_NBD), None, None)[0], bits)
    values = codes_of(store.values.encode(torch.tensor(x_NBD[:, :1]), None, None)[0], bits)
    for n in range(3):
        for d in range(dim):
            assert keys[n, d].tolist() == kivi.quantise_group(x_NBD[n, :, d], bits)[0]
        for g in range(dim // group):
            assert values[n, g].tolist() == kivi.quantise_group(x_NBD[n, 0, g * group : (g + 1) * group], bits)[0]


def codes_of(packed: torch.Tensor, bits: int) -> np.ndarray:
    """Return the codes in packed bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    return np.stack([(packed.numpy() >> (bits * i)) & (2**bits - 1) for i in range(per_byte)], -1).reshape(
        *packed.shape[:-1], -1
    )


def kivi_bytes(kept: int, dim: int, bits: int, group: int, residual: int) -> float:
    """Return the bytes of one KV head: codes, two float32 per group, and the newest tokens in full."""
    keys, values = kivi.quantised_tokens(kept, kept, residual)
    encoded = (keys + values) * dim * (bits / 8 + 2 * 4 / group)
    return encoded + (2 * kept - keys - values) * dim * 4


def think_bytes(kept: int, dim: int, ratio: float, recent: int) -> float:
    """Return the bytes of one KV head: values in full, and keys that lose channels but for the newest."""
    pruned = think.pruned_tokens(kept, recent)
    return 4 * (2 * kept * dim - pruned * int(ratio * dim))


FORMULAS = {
    "kivi": lambda kept, dim: kivi_bytes(kept, dim, 2, 32, 128),
    "think": lambda kept, dim: think_bytes(kept, dim, 0.4, 32),
}


@pytest.mark.parametrize("evicting", ["", "ada_snapkv+", "prefixkv+"])
@pytest.mark.parametrize("store", list(FORMULAS))
def test_measured_bytes_are_those_of_the_formula(store: str, evicting: str) -> None:
    """The bytes in the record of an answer equal the formula to 1 %."""
    loaded = kvbench.load_model("tiny")
    dim = loaded.model.config.head_dim
    ids = torch.randint(3, 250, (700,), generator=torch.Generator().manual_seed(1)).tolist()
    variant = kvbench.Variant(kvbench.load_method(evicting + store), 300 if evicting else None)
    ((generation,),) = kvbench.generate(loaded.model, loaded.tokenizer, [ids], [variant], max_new_tokens=4, stop_ids=[])
    formula = sum(FORMULAS[store](kept, dim) for layer in generation.kept for kept in layer)
    assert abs(generation.kv_bytes / formula - 1) < 0.01
    if evicting:
        assert generation.kept_mean == pytest.approx(300, abs=0.5)
        assert len({kept for layer in generation.kept for kept in layer}) > 1, "the heads are ragged"


def test_allocated_bytes_are_those_of_the_tensors() -> None:
    store = kvbench.load_method("kivi").store
    cache, keep_UT = RaggedCache(1), torch.rand(2, 900, generator=torch.Generator().manual_seed(1)) < 0.7
    cache.add(0, [Entry(0, keep_UT, 0, store=store)], *torch.randn(2, 2, 900, 64).unbind())
    _, rows = cache._layers[0].values()
    (part,) = rows._parts
    tensors = [x for pool in (part.keys, part.values) for x in (*pool.buffers, pool.plain_RD)]
    resident = sum(x.untyped_storage().nbytes() for x in tensors)
    formula = sum(kivi_bytes(int(kept), 64, 2, 32, 128) for kept in keep_UT.sum(1))
    assert cache.bytes() == cache.used_bytes(0) == resident
    assert resident == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize(
    ("name", "dials"),
    [("h2o_decode+kivi", {"group_size": 8, "residual": 16}), ("streaming_llm_decode+think", {"recent": 8})],
)
def test_stores_and_decode_policies_combine(name: str, dials: dict[str, int]) -> None:
    """Both act: the masked cache gives the same tokens, heads hold the budget, and bytes are fewer than plain ones."""
    loaded = kvbench.load_model("tiny")
    ids = torch.randint(3, 250, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    variants = [kvbench.Variant(kvbench.load_method(name, **dials), 90)]
    variants.append(kvbench.Variant(kvbench.load_method(name.split("+")[0]), 90))
    answers = [
        kvbench.generate(loaded.model, loaded.tokenizer, [ids], variants, max_new_tokens=40, stop_ids=[], cache=cache)[
            0
        ]
        for cache in ("ragged", "masked")
    ]
    for ragged, masked in zip(*answers, strict=True):
        assert ragged.token_ids == masked.token_ids
        assert ragged.kept_max == masked.kept_max == 90
    assert answers[0][0].kv_bytes < 0.9 * answers[0][1].kv_bytes
