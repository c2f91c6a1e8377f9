"""Drawn dials of every decode policy with a promise: the tokens that heads hold at each of 512 generated ones.

Shape suffixes: U KV heads, T tokens of the prompt.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.fields import InvalidField
from tests.helpers.methods import load, shipped

POLICIES = sorted(name for name, method in shipped().items() if method.decode is not None and method.promises == "kept")
SCHEDULES = [("adaptive", 0), ("adaptive", 3), ("discontinuous", 0), ("discontinuous", 1), ("discontinuous", 9)]
CASES = [*((name, {}) for name in POLICIES), *(("scope", {"schedule": s, "delta": d}) for s, d in SCHEDULES)]
HEADS, PROMPT, NEW, DIM = 2, 40, 512, 4


Row = tuple[dict[str, int], str, list[int]]
"""The dials of a row, its phase, and the share of each head."""


def drawn_rows(name: str, rows: int = 9) -> list[Row]:
    draw, out = random.Random(name), []
    for _ in range(rows):
        interval = draw.choice([0, 0, 1, 2, 7, 64])
        buffer = 0 if interval == 1 else draw.randint(int(interval > 1), 40)
        shares = [draw.randint(16, PROMPT - 1) for _ in range(HEADS)]
        out.append(({"interval": interval, "buffer": buffer}, draw.choice(["both", "decode"]), shares))
    return out


def policy_of(name: str, more: dict[str, Any]) -> DecodePolicy:
    small = {dial: value for dial, value in {"recent": 5, "decode_budget": 30}.items() if name == "scope"}
    decoding = load(name, **small, **more).decode
    assert decoding is not None
    return decoding.policy.for_answer(NEW)


def expected(decoding: Decoding, base: int, kept: int) -> list[int]:
    """Return the tokens of a head after each step, by the definition of the dials."""
    lengths, steps_N1 = [], torch.arange(1, NEW + 1)[:, None]
    limit_N1 = decoding.policy.limit(base + 0 * steps_N1, steps_N1, 0, PROMPT + 0 * steps_N1)
    assert limit_N1 is not None
    for step, limit in enumerate(limit_N1.flatten().tolist(), start=1):
        kept += 1
        if kept > limit + decoding.buffer or (decoding.interval and step % decoding.interval == 0):
            kept = min(kept, limit)
        lengths.append(kept)
    return lengths


@pytest.mark.parametrize(("name", "more"), CASES)
def test_lengths_are_the_limit_and_the_buffer_at_every_token(name: str, more: dict[str, Any]) -> None:
    batch = drawn_rows(f"{name} {more}")
    policy, cache, g = policy_of(name, more), RaggedCache(1), torch.Generator().manual_seed(0)
    k_UTD = torch.randn(HEADS, PROMPT, DIM, generator=g)
    lengths: dict[int, list[list[int]]] = {}
    for row, (dials, phase, base_U) in enumerate(batch):
        if phase not in policy.phases:
            continue
        keep_UT = (
            torch.ones(HEADS, PROMPT).bool()
            if phase == "decode"
            else torch.arange(PROMPT) >= PROMPT - torch.tensor(base_U)[:, None]
        )
        base_U = [PROMPT] * HEADS if phase == "decode" and policy.adds_to_prompt else base_U
        try:
            decoding = Decoding(policy, phase, **dials)
        except InvalidField:  # a policy that fixes when it cuts
            continue
        score_UT = torch.rand(HEADS, PROMPT, generator=g)
        entry = Entry(row, keep_UT, NEW, decoding=decoding, score_UT=score_UT, base_U=base_U, rotate=lambda x, by: x)
        cache.add(0, [entry], k_UTD, k_UTD)
        lengths[row] = [expected(decoding, b, n) for b, n in zip(base_U, keep_UT.sum(1).tolist(), strict=True)]
    assert len(lengths) > 2, "a policy takes some of the rows that are drawn"
    for step in range(NEW):
        tokens = torch.randn(3, len(lengths), HEADS, 1, DIM, generator=g)
        cache.attend(0, list(lengths), *tokens, 1.0)
        now = {row: cache.lengths(row)[0] for row in lengths}
        assert now == {row: [of_head[step] for of_head in heads] for row, heads in lengths.items()}, f"step {step + 1}"
    for row, heads in lengths.items():
        assert cache.peak(row) == max(_begin(batch[row]), *map(max, heads))


def _begin(row: Row) -> int:
    """Return the tokens of the longest head when decoding begins."""
    return PROMPT if row[1] == "decode" else max(row[2])
