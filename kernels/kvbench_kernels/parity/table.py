"""The list of all comparisons: every op, on each kind of input that it treats in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from kvbench_kernels.parity import decoding, prompts, steps
from kvbench_kernels.parity.inputs import BOUND, SCORE_BOUND, bound_of, name_of


@dataclass(frozen=True)
class Case:
    """An op on one kind of input. `run(device, seed)` returns the error; it must be at most `bound` and not NaN."""

    op: str
    title: str
    bound: float
    run: Callable[[torch.device, int], float]


def cases(large: bool) -> Iterator[Case]:
    """Yield all cases; with `large` also those of a real model's size, which are for a GPU."""
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (64, 80, 96, 128, 256):
            yield _decode_case("ragged_decode", dtype, dim, 4, 1, 200)
            yield _decode_case("ragged_append_decode", dtype, dim, 4, 1, 200)
            yield _decode_case("ragged_decode", dtype, dim, 16, 1, 200)  # more than 8 queries of a KV head
            yield _decode_case("ragged_append_decode", dtype, dim, 5, 7, 200)
        for group, tokens in ((1, 1), (5, 1), (8, 1), (4, 3), (7, 2), (1, 17)):
            yield _decode_case("ragged_decode", dtype, 64, group, tokens, 150)
            yield _decode_case("ragged_append_decode", dtype, 64, group, tokens, 150)
        name = name_of(dtype)
        for tokens in (1, 5):
            yield Case("ragged_append", f"{name} T{tokens}", 0, partial(decoding.append, dtype=dtype, tokens=tokens))
        for over, pool, known in (("mean", "max", True), ("max", "avg", False), ("sum", "none", True)):
            title = f"{name} {over} {pool}{' lse' if known else ''}"
            run = partial(prompts.window_score, dtype=dtype, group=over, pool=pool, known=known)
            yield Case("window_score", title, SCORE_BOUND, run)
        yield Case("row_lse", name, SCORE_BOUND, partial(prompts.row_lse, dtype=dtype))
        yield Case("column_sums", name, SCORE_BOUND, partial(prompts.column_sums, dtype=dtype))
        yield Case("ragged_gather", name, 0, partial(prompts.gather, dtype=dtype))
        yield Case("ragged_relayout", name, 0, partial(prompts.relayout, dtype=dtype))
        for size in (8, 264, 4096, 9000):
            for added in (False, True):
                title = f"{name} C{size}{' added' if added else ''}"
                run = partial(steps.add_rms_norm, dtype=dtype, size=size, added=added)
                yield Case("add_rms_norm", title, bound_of(dtype, 3 * size), run)
        for dim in (16, 64, 80, 128, 256):
            for normed in (False, True):
                title = f"{name} D{dim}{' normed' if normed else ''}"
                yield Case("rope", title, BOUND[dtype], partial(steps.rope, dtype=dtype, dim=dim, normed=normed))
        for size in (72, 1000):
            yield Case("silu_mul", f"{name} F{size}", BOUND[dtype], partial(steps.silu_mul, dtype=dtype, size=size))
        for tokens, inputs, outputs, how in (
            (1, 64, 96, ""), (2, 72, 40, "gated early"), (7, 8, 2, "gated"), (8, 1032, 33, "bias"),
            (9, 4096, 50, "bias gated early"), (16, 1992, 1, "early"), (16, 512, 130, "gated"),
            (16, 264, 320, "D64 early"), (3, 96, 480, "bias D80"),
        ):  # fmt: skip
            yield _linear_case(dtype, tokens, inputs, outputs, how)
        for dim, queries, tokens in ((64, 3, 1), (80, 1, 5), (128, 8, 1), (256, 2, 40)):
            run = partial(decoding.decode_weights, dtype=dtype, dim=dim, group=queries, tokens=tokens)
            yield Case("decode_weights", f"{name} D{dim} Q{queries} T{tokens}", BOUND[dtype], run)
        for bits, group, dim in ((2, 32, 64), (4, 16, 80), (8, 32, 128), (2, 8, 256), (4, 32, 32)):
            for queries, tokens in ((1, 1), (3, 1), (12, 1), (2, 5)):
                title = f"{name} {bits} bits G{group} D{dim} Q{queries} T{tokens}"
                run = partial(
                    decoding.packed, dtype=dtype, bits=bits, size=group, dim=dim, group=queries, tokens=tokens
                )
                yield Case("packed_decode", title, BOUND[dtype], run)
        for k_bits, v_bits in ((0, 2), (4, 0), (0, 0)):
            run = partial(decoding.packed, dtype=dtype, bits=k_bits, v_bits=v_bits, size=32, dim=64, group=4, tokens=1)
            yield Case("packed_decode", f"{name} {k_bits} and {v_bits} bits", BOUND[dtype], run)
        for bits, dim, channels, queries in ((2, 128, 77, 4), (4, 64, 1, 1), (8, 32, 31, 3)):
            run = partial(
                decoding.packed, dtype=dtype, bits=bits, size=32, dim=dim, group=queries, tokens=1, channels=channels
            )
            yield Case("packed_decode", f"{name} {bits} bits D{dim} C{channels}", BOUND[dtype], run)
    for scope in ("head", "layer"):
        for ties in (False, True):
            yield Case(
                "select", f"{scope}{' ties' if ties else ''}", 0, partial(prompts.select, scope=scope, ties=ties)
            )
    if large:
        for group, tokens, longest in ((4, 1, 40_000), (16, 1, 40_000), (8, 16, 3000), (4, 32, 40_000)):
            yield _decode_case("ragged_decode", torch.bfloat16, 128, group, tokens, longest)
            yield _decode_case("ragged_append_decode", torch.bfloat16, 128, group, tokens, longest)
        # more blocks than processors
        for tokens, outputs, how in ((3, 6144, "bias early"), (16, 9000, "gated early"), (16, 6144, "D128 early")):
            yield _linear_case(torch.bfloat16, tokens, 1024, outputs, how)


def _linear_case(dtype: torch.dtype, tokens: int, inputs: int, outputs: int, how: str) -> Case:
    run = partial(steps.linear, dtype=dtype, tokens=tokens, inputs=inputs, outputs=outputs, how=how)
    title = f"{name_of(dtype)} N{tokens} C{inputs} O{outputs} {how}".rstrip()
    numbers = tokens * outputs // (2 if "gated" in how else 1)
    return Case("linear_rope" if "D" in how else "linear", title, bound_of(dtype, numbers), run)


def _decode_case(op: str, dtype: torch.dtype, dim: int, group: int, tokens: int, longest: int) -> Case:
    fused = op == "ragged_append_decode"
    run = partial(decoding.decode, dtype=dtype, dim=dim, group=group, tokens=tokens, longest=longest, fused=fused)
    return Case(op, f"{name_of(dtype)} D{dim} G{group} T{tokens} length {longest}", BOUND[dtype], run)
