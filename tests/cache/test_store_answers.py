"""Faulty answers of a store: each is an error of one line in every cache, before an answer relies on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decoding import Decoding
from kvbench.methods.storage import Encoded, Half, Rows, Store

HEADS, PROMPT, DIM = 2, 21, 8
CACHES: dict[str, tuple[Callable[[], Any], Decoding | None]] = {
    "ragged": (lambda: RaggedCache(1), None),
    "evicting": (lambda: RaggedCache(1), Decoding(SlidingWindow(2))),
    "masked": (lambda: MaskedCache(1), None),
}


@dataclass(frozen=True)
class Halved(Half):
    """Pairs of tokens divided by a scale; `alter` changes what one of its functions returns."""

    name: str = ""
    alter: Callable[[Any], Any] = lambda x: x

    @property
    def block(self) -> int:
        return 2

    def encoded(self, n: int, kept: int) -> int:
        return self._of("encoded", max(0, n - 3) // 2 * 2)

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        scale_N = x_NBD.abs().amax((1, 2)).clamp_min(1e-3)
        return self._of("encode", (x_NBD / scale_N[:, None, None], scale_N))

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        x_NBD, scale = encoded
        assert isinstance(x_NBD, Tensor) and isinstance(scale, Tensor)
        return self._of("decode", x_NBD * scale.view(-1, 1, 1))

    def block_bytes(self, dim: int, dtype: torch.dtype) -> int:
        return (2 * dim + 1) * dtype.itemsize

    def _of(self, name: str, answer: Any) -> Any:
        return self.alter(answer) if self.name == name else answer


@dataclass(frozen=True)
class HalvedKeys(Store):
    """Keys that are held in halves."""

    half: Halved

    @property
    def keys(self) -> Half:
        return self.half


def rows_of_bytes(blocks: Encoded) -> Encoded:
    x = blocks[0]
    assert isinstance(x, Tensor)
    lengths = torch.full((len(x) + 1,), 4)
    return x, Rows.joined(torch.zeros(4 * len(lengths), dtype=torch.uint8), lengths)


ONE_EACH = r"must be tensors with \d+ leading rows, one for each block"
ODD: dict[str, tuple[Halved, str]] = {
    "a scale of the call": (Halved("encode", lambda x: (x[0], x[1].amax())), rf"encode returned .*\[\], {ONE_EACH}"),
    "a scale of several": (Halved("encode", lambda x: (x[0], x[1].amax()[None])), rf"encode .*\[1\], {ONE_EACH}"),
    "too many rows": (Halved("encode", lambda x: (x[0], x[1].repeat(2))), rf"encode returned .*, {ONE_EACH}"),
    "too many rows of bytes": (Halved("encode", rows_of_bytes), f"encode returned Rows, {ONE_EACH}"),
    "a list": (Halved("encode", list), "encode returned list, must be a tuple of tensors"),
    "numbers": (Halved("encode", lambda x: (x[0], 3.0)), f"encode returned float, {ONE_EACH}"),
    "one number of a channel": (
        Halved("encode", lambda x: (x[0][..., :1] if len(x[0]) > 1 else x[0], x[1])),
        r"encode returned torch.float32, \[\d+, 2, 1\], must be like the first block: torch.float32, .* 2, 8\]",
    ),
    "another precision": (
        Halved("encode", lambda x: (x[0], x[1].double() if len(x[1]) > 1 else x[1])),
        r"encode returned torch.float64, \[\d+\], must be like the first block: torch.float32",
    ),
    "a tensor less": (
        Halved("encode", lambda x: x[:1] if len(x[0]) > 1 else x),
        "encode returned 1 tensors, must be 2, as for the first block",
    ),
    "decoded tokens without blocks": (
        Halved("decode", lambda x: x.flatten(0, 1)),
        r"decode returned torch.float32, \[\d+, 8\], must be \[blocks, tokens of a block, head dimension\] = \[",
    ),
    "one token of a block": (Halved("decode", lambda x: x[:, :1]), r"decode returned .* 1, 8\], must be \[blocks"),
    "one channel": (Halved("decode", lambda x: x[..., :1]), r"decode returned .* 2, 1\], must be \[blocks"),
    "half a block": (Halved("encoded", lambda n: n + 1), r"encoded\(\d+, 21\) returned \d+, must be a multiple of 2"),
    "more than there is": (Halved("encoded", lambda n: n + 40), r"encoded\(.* must be a multiple of 2 .* from 0 to"),
    "less than nothing": (Halved("encoded", lambda n: -2), r"encoded\(.* returned -2, must be a multiple of 2"),
    "a float": (Halved("encoded", float), r"encoded\(.* returned \d+\.0, must be a multiple of 2"),
}


def play(cache: Any, policy: Decoding | None, half: Halved) -> list[Tensor]:
    """Return the outputs of some steps of two rows with the same store."""
    g, outs = torch.Generator().manual_seed(0), []
    keep_UT = torch.ones(HEADS, PROMPT, dtype=torch.bool)
    of_policy = {} if policy is None else {"decoding": policy, "base_U": [PROMPT] * HEADS}
    for row in range(2):
        entry = Entry(row, keep_UT, 8, store=HalvedKeys(half), **of_policy)  # type: ignore[arg-type]
        cache.add(0, [entry], *torch.randn(2, HEADS, PROMPT, DIM, generator=g))
    for _ in range(8):
        outs.append(cache.attend(0, [0, 1], *torch.randn(3, 2, HEADS, 1, DIM, generator=g), 0.4))
    return outs


# The masked cache holds no buffers, which a later block could differ from: every call decodes what it encodes.
CASES = [(c, n) for c in CACHES for n, (_, says) in ODD.items() if c != "masked" or "the first block" not in says]


@pytest.mark.parametrize(("cache", "name"), CASES)
def test_what_a_store_must_not_return_is_one_line(cache: str, name: str) -> None:
    half, message = ODD[name]
    make, policy = CACHES[cache]
    with pytest.raises(ValueError, match=f"^method: Halved.{message}") as caught:
        play(make(), policy, half)
    assert "\n" not in str(caught.value)


def test_what_a_store_may_return() -> None:
    """Answers of the right shapes give the same outputs in both caches."""
    outs = {cache: play(CACHES[cache][0](), CACHES[cache][1], Halved()) for cache in ("ragged", "masked")}
    for x, y in zip(outs["ragged"], outs["masked"], strict=True):
        torch.testing.assert_close(x, y)
