"""QAQ against its naive twin: outliers, bits, codes and bytes, and rows of bytes of different lengths in a cache."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.cache.rows import RowBuffer
from kvbench.methods import mixed_rows
from kvbench.methods.context import LayerContext
from kvbench.methods.storage import Rows
from kvbench.run.record import broken_promise
from tests.helpers.tiny_engine import Tiny, generate, prompt, tiny_model
from tests.reference import qaq


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def half(which: int, **dials: Any) -> Any:
    store = kvbench.load_method("qaq", **dials).store
    assert store is not None
    return store.halves[which]


def test_limits_are_those_of_the_sheet() -> None:
    """n = 100, a norm of 300; a value of which the last query attends 0.1."""
    errors = {1.0: 0.607305, 3.0: 0.675800, 10.0: 0.743655, 30.0: 0.800569}
    ctx = LayerContext(*(torch.zeros(1, 100, 4) for _ in range(3)))
    for error, limit in errors.items():
        assert qaq.key_limit(100, error, 300) == pytest.approx(limit, abs=1e-6)
        assert half(0, error=error, last=1).limits(ctx).tolist() == [pytest.approx([limit] * 100, abs=1e-6)]
    assert qaq.value_limit(100, 1.0, 0.1) == pytest.approx(3.4641, abs=1e-4)
    assert half(1, last=1).limits(ctx)[0, 0] == pytest.approx(qaq.value_limit(100, 1.0, 0.01), abs=1e-4)
    bits_N = mixed_rows.bits_of(torch.full((4,), 10.0), torch.tensor(list(errors.values())), 0, 16)
    assert bits_N.tolist() == [4, 4, 3, 3]


def test_codes_are_those_of_the_sheet() -> None:
    x = np.array([0.1, -0.4, 0.8, 1.2, -1, 0.3, 0, 0.6])
    codes, out = qaq.restore(x, 2, 0)
    assert list(codes.values()) == [0, -1, 1, 1, -2, 0, 0, 1]
    np.testing.assert_allclose(out, [0.2, -0.35, 0.75, 0.75, -0.9, 0.2, 0.2, 0.75])
    assert list(qaq.restore(x, 3, 0)[0].values()) == [0, -2, 2, 3, -4, 0, -1, 1]
    for bits in (2, 3):
        same = half(0, least=bits, most=bits, outliers=0.0)
        encoded = same.encode(torch.tensor(x)[None, None], None, None)
        np.testing.assert_allclose(same.decode(encoded, None, 8)[0, 0], qaq.restore(x, bits, 0)[1])


@pytest.mark.parametrize("seed", range(12))
def test_tokens_are_those_of_the_twin(seed: int) -> None:
    """Halves and quarters make ties among outliers. Attention is the largest of a group's query heads."""
    rng = np.random.default_rng(seed)
    heads, group, tokens, dim = int(rng.integers(1, 3)), (1, 3, 4)[seed % 3], int(rng.integers(2, 25)), 16

    def draw(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.integers(-8, 9, shape) / 4 if seed % 3 == 1 else 2 * rng.normal(size=shape))

    ctx = LayerContext(draw(heads * group, tokens, dim), draw(heads, tokens, dim), draw(heads, tokens, dim))
    least, share, error = (
        int(rng.integers(0, 3)),
        (0.0, 0.01, 0.2)[seed % 2 + seed % 3 // 2],
        float(rng.choice([1, 10])),
    )
    dials = {"least": least, "most": 5, "outliers": share, "error": error, "symmetric": seed % 4 == 3, "last": 3}
    attention_UT = ctx.window_attention(min(3, tokens)).amax((1, 2))
    for which, x_UTD in enumerate((ctx.k, ctx.v)):
        own = half(which, **dials)
        side = own.prepare(ctx, torch.ones(heads, tokens, dtype=torch.bool), x_UTD)
        sizes_UT = own.sizes(ctx, x_UTD)
        for head in range(heads):
            for token in range(tokens):
                x = x_UTD[head, token]
                limit = (
                    qaq.key_limit(tokens, error, 300)
                    if which == 0
                    else qaq.value_limit(tokens, error, float(attention_UT[head, token]))
                )
                bits = qaq.bits_of(x.numpy(), limit, least, 5, share, bool(dials["symmetric"]))
                bits = bits if token < tokens - 2 else 5
                encoded = own.encode(x[None, None], None, side.token[head, token][None, None])
                assert encoded[1].tolist() == [bits]
                expected = qaq.restore(x.numpy(), bits, share, bool(dials["symmetric"]))[1]
                np.testing.assert_allclose(own.decode(encoded, None, dim)[0, 0], expected, atol=1e-9)
                size = qaq.token_bytes(x.numpy(), bits, share, 8, bool(dials["symmetric"]))
                assert own.nbytes(encoded) == size == sizes_UT[head, token]


@pytest.mark.parametrize("seed", range(6))
def test_heads_of_a_token_are_quantised_together_at_level_layer(seed: int) -> None:
    """They share outlier thresholds, bits, scale and mean, whichever of them stay in the cache."""
    rng = np.random.default_rng(seed)
    heads, group, tokens, dim = int(rng.integers(2, 4)), (1, 3, 4)[seed % 3], int(rng.integers(5, 20)), 16
    draw = (lambda *s: rng.integers(-8, 9, s) / 4) if seed % 3 == 1 else (lambda *s: 2 * rng.normal(size=s))
    ctx = LayerContext(*(torch.tensor(draw(n, tokens, dim)) for n in (heads * group, heads, heads)))
    share, least = (0.0, 0.01, 0.2)[seed % 2 + seed // 3], int(rng.integers(0, 3))
    dials = {"least": least, "most": 5, "outliers": share, "last": 3, "level": "layer"}
    attention_T = ctx.window_attention(3).amax((0, 1, 2))
    for which, x_UTD in enumerate((ctx.k, ctx.v)):
        own = half(which, **dials)
        side, sizes_UT = own.prepare(ctx, torch.ones(heads, tokens, dtype=torch.bool), x_UTD), own.sizes(ctx, x_UTD)
        for token in range(tokens):
            x_UD = x_UTD[:, token].numpy()
            value = qaq.value_limit(tokens, 1.0, float(attention_T[token]))
            limit = value if which else qaq.key_limit(tokens, 1.0, 300)
            bits = qaq.bits_of(x_UD.flatten(), limit, least, 5, share) if token < tokens - 2 else 5
            expected_UD, places = qaq.restore_unit(x_UD, bits, share), qaq.unit_outliers(x_UD, share)
            for head in range(heads):
                encoded = own.encode(x_UTD[head, token][None, None], None, side.token[head, token][None, None])
                assert encoded[1].tolist() == [bits]
                np.testing.assert_allclose(own.decode(encoded, None, dim)[0, 0], expected_UD[head], atol=1e-9)
                size = -(-dim * bits // 8) + len(places[head]) * 9 + 2 * 8 + 1 + 6
                assert own.nbytes(encoded) == size == sizes_UT[head, token]


def test_what_crashes_the_reference_works() -> None:
    """Symmetric codes, tokens of equal numbers, a prompt of one token, and codes without bits, which are the mean."""
    own = half(0, least=0, most=4, symmetric=True)
    x = torch.tensor([[[3.0] * 8], [[0.0] * 8], [[1.0, -1, 0.5, 0, 2, -2, 1, 1]]])
    restored = own.decode(own.encode(x, None, torch.full((3, 1), 1e-3)), None, 8)
    torch.testing.assert_close(restored, x, atol=0.38, rtol=0)
    plain = half(0, least=0, most=4)
    equal = plain.encode(x[:2], None, torch.full((2, 1), torch.inf))
    assert equal[1].tolist() == [0, 0] and plain.decode(equal, None, 8).equal(x[:2])
    mean = half(1, least=0, most=4, outliers=0.0).encode(x[2:], None, torch.full((1, 1), torch.inf))
    torch.testing.assert_close(own.decode(mean, None, 8), torch.full((1, 1, 8), 0.3125))
    single = LayerContext(*(torch.randn(1, 1, 8) for _ in range(3)))
    assert half(0).limits(single).isfinite().all() and half(1).limits(single).isfinite().all()


@pytest.mark.parametrize("bits", range(1, 17))
def test_codes_of_any_width_are_packed(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 11), generator=torch.Generator().manual_seed(bits))
    packed = mixed_rows.pack(codes, bits)
    assert packed.shape == (5, -(-11 * bits // 8)) and packed.dtype == torch.uint8
    assert mixed_rows.unpack(packed, bits, 11).equal(codes)


def test_rows_of_different_lengths_share_a_buffer() -> None:
    """Rows are written in any order and again; the bytes of overwritten ones are taken back."""
    buffer, rng = RowBuffer(9, torch.device("cpu")), np.random.default_rng(0)
    expected: dict[int, list[int]] = {n: [] for n in range(9)}
    for _ in range(60):
        at = rng.permutation(9)[: int(rng.integers(1, 5))]
        rows = [rng.integers(0, 256, int(rng.integers(0, 30))).tolist() for _ in at]
        lengths = torch.tensor([len(row) for row in rows])
        buffer[torch.tensor(at)] = Rows.joined(torch.tensor(list(chain(*rows)), dtype=torch.uint8), lengths)
        expected |= dict(zip(at.tolist(), rows, strict=True))
        whole = buffer[torch.arange(9)]
        ends = zip(whole.start_N.tolist(), (whole.start_N + whole.length_N).tolist(), strict=True)
        assert [whole.data[first:last].tolist() for first, last in ends] == list(expected.values())
        assert whole.nbytes == sum(map(len, expected.values())) + 9 * 6
        assert buffer.nbytes <= 2 * 9 * 30 + 9 * 6
    assert len(buffer.grown(12)) == 12 and buffer[9:].length_N.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("dials", "problem"),
    [
        ({"least": 5}, "least=5: must be at most 4"),
        ({"most": 17}, "most=17: must be at most 16"),
        ({"outliers": 0.7}, "outliers=0.7: must be at most 0.5"),
        ({"last": 0}, "last=0: must be at least 1"),
        ({"generated": "later"}, "generated=later: must be one of plain, encoded"),
        ({"level": "token"}, "level=token: must be one of head, layer"),
        ({"level": "layer", "generated": "encoded"}, "generated=encoded: must be one of plain"),
    ],
)
def test_impossible_dials_are_one_line(dials: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^method\.{problem}$"):
        kvbench.load_method("qaq", **dials)


@pytest.mark.parametrize("evicting", ["", "ada_snapkv+", "h2o_decode+"])
def test_rows_hold_what_the_masked_cache_restores(tiny: Tiny, evicting: str) -> None:
    """Bits of generated tokens are the most; bytes are those promised; both caches answer alike."""
    dials: dict[str, Any] = {"generated": "encoded", "least": 0, "most": 3}
    variants = [kvbench.Variant(kvbench.load_method(evicting + "qaq", **dials), "0.2B" if evicting else None)]
    variants += [kvbench.Variant(kvbench.load_method(evicting + "qaq"), 60 if evicting else None)]
    together = kvbench.load_method(evicting + "qaq", level="layer")
    variants += [kvbench.Variant(together, "0.2B" if evicting else "0.25B")]
    ragged, masked = (generate(tiny, [prompt(150)], variants, cache=cache)[0] for cache in ("ragged", "masked"))
    for variant, ours, other in zip(variants, ragged, masked, strict=True):
        assert (ours.token_ids, ours.kept, ours.kept_max) == (other.token_ids, other.kept, other.kept_max)
        assert broken_promise(variant, ours) is None
