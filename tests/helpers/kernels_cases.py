"""Cases for append and decode: fresh random caches, the kernels run on the CPU, and what has to come out, in float64.

Shape suffixes as in kvbench_kernels.ops.reference; C query columns (head of the group x token).
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kvbench_kernels.build import compilers
from kvbench_kernels.ops import library
from tests.helpers.kernels_prefill import draw, surrounded
from tests.helpers.kernels_sources import copy_sources, unit

MOST_ERROR = {torch.bfloat16: 5e-3, torch.float16: 1e-3}  # of a lane, |out - ref| / |ref|
EDGES = (0, 1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129)
GRID_COUNTER = 3 * 2048  # kGridCounter
_AFTER = 100_000  # floats after the workspace that must stay as they are
_DTYPE = {torch.bfloat16: 0, torch.float16: 1}
# What leaves one kind of kernel out of decode.cu: compiling the other takes half of the time.
_ONLY = {"narrow": "if constexpr (D == 0)", "wide": "if constexpr (D != 0)", "both": ""}


@dataclass
class Case:
    """A layer's cache, and new tokens of some of its segments. NaN is wherever nothing may be read."""

    k_RD: Tensor
    v_RD: Tensor
    start_S1: Tensor
    length_S: Tensor
    segment_N: Tensor
    q_BHTD: Tensor
    k_BUTD: Tensor
    v_BUTD: Tensor
    scaling: float

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Batch, KV heads, query heads per group, tokens, head dimension."""
        batch, heads, tokens, dim = self.q_BHTD.shape
        kv_heads = len(self.segment_N) // batch
        return batch, kv_heads, heads // kv_heads, tokens, dim

    def copy(self) -> Case:
        """Return a copy with its own buffers and lengths."""
        return replace(self, k_RD=self.k_RD.clone(), v_RD=self.v_RD.clone(), length_S=self.length_S.clone())

    def __str__(self) -> str:
        batch, kv_heads, group, tokens, dim = self.sizes
        shape = f"{batch} rows, {kv_heads} KV heads, group {group}, {tokens} tokens, D {dim}, {self.k_RD.dtype}"
        return f"{shape}, lengths {self.length_S.tolist()}, segments {self.segment_N.tolist()}"


def make_case(
    g: torch.Generator,
    dtype: torch.dtype,
    dim: int,
    lengths: Sequence[int],
    batch: int = 1,
    group: int = 1,
    tokens: int = 1,
    room: int = 0,
    others: int = 0,
    spread: float = 1.0,
    spare: int = 20,
) -> Case:
    """Draw a cache with a lane for each of `lengths`, and `others` segments that are in no lane.

    Args:
        room: free slots of every segment; up to `spare` more are drawn.
        spread: of the attention logits, about.
    """
    lanes = len(lengths)
    order = torch.randperm(lanes + others, generator=g)
    segment_N = order[:lanes].to(torch.int32)
    length_S = torch.randint(0, 90, (lanes + others,), generator=g, dtype=torch.int32)
    length_S[segment_N] = torch.tensor(lengths, dtype=torch.int32)
    capacity_S = length_S + room + torch.randint(0, spare + 1, length_S.shape, generator=g, dtype=torch.int32)
    start_S1 = torch.cat([torch.zeros(1, dtype=torch.int32), capacity_S.cumsum(0, dtype=torch.int32)])
    start_S1 += draw(g, 0, 9)
    slots = int(start_S1[-1]) + draw(g, 1, 9)
    k_RD, v_RD = (torch.full((slots, dim), torch.nan, dtype=dtype) for _ in range(2))
    for start, length in zip(start_S1[:-1].tolist(), length_S.tolist(), strict=True):
        for x_RD in (k_RD, v_RD):
            x_RD[start : start + length] = torch.randn(length, dim, generator=g).to(dtype)
    kv_heads = lanes // batch
    q_BTHD = torch.randn(batch, tokens, kv_heads * group, dim, generator=g) * spread
    k_BTUD, v_BUTD = (torch.randn(batch, *s, dim, generator=g) for s in ((tokens, kv_heads), (kv_heads, tokens)))
    q_BHTD, k_BUTD = (surrounded(x.to(dtype)).transpose(1, 2) for x in (q_BTHD, k_BTUD))
    v_BUTD = surrounded(v_BUTD.to(dtype))
    return Case(k_RD, v_RD, start_S1, length_S, segment_N, q_BHTD, k_BUTD, v_BUTD, dim**-0.5)


@dataclass
class Result:
    out_BHTD: Tensor
    lse_BHT: Tensor
    counters_left: int  # that are not zero
    written_after: int  # floats after the end of the workspace
    of_pieces: int  # floats that are written of the workspace: those of pieces of items that are split

    def same_bits(self, other: Result) -> bool:
        return torch.equal(_bits(self.out_BHTD), _bits(other.out_BHTD)) and torch.equal(self.lse_BHT, other.lse_BHT)


def append(kernels: library.Library, case: Case, status: Tensor) -> None:
    """Call kvb_ragged_append on the case."""
    batch, kv_heads, _, tokens, dim = case.sizes
    sizes = {"batch": batch, "kv_heads": kv_heads, "tokens": tokens, "dim": dim, "dtype": _DTYPE[case.k_RD.dtype]}
    fresh = {"k_new": _strided(case.k_BUTD), "v_new": _strided(case.v_BUTD)}
    kernels.call("ragged_append", None, **fresh, **_cache(case), status=status.data_ptr(), **sizes)


def decode(
    kernels: library.Library, case: Case, ctas: int, status: Tensor | None = None, left: Sequence[int] = ()
) -> Result:
    """Call kvb_ragged_decode, or kvb_ragged_append_decode if there is a status. Outputs and workspace start as NaN.

    Args:
        left: what another launch has left in the last counters.
    """
    batch, kv_heads, group, tokens, dim = case.sizes
    size = kernels.size("decode_workspace_bytes", dim, ctas) // 4
    workspace = torch.full((size + _AFTER,), torch.nan)
    counters = workspace[: _counter_bytes(kernels.path) // 4].zero_()
    if left:
        counters.view(torch.int32)[GRID_COUNTER : GRID_COUNTER + len(left)] = torch.tensor(left, dtype=torch.int32)
    out_BHTD = torch.full((batch, tokens, kv_heads * group, dim + 8), torch.nan, dtype=case.k_RD.dtype).transpose(1, 2)
    out_BHTD = out_BHTD[..., :dim]
    lse_BHT = torch.full((batch, kv_heads * group, tokens), torch.nan)
    nothing = (None, 0, 0, 0)
    kernels.call(
        "ragged_decode" if status is None else "ragged_append_decode",
        None,
        q=_strided(case.q_BHTD),
        out=_strided(out_BHTD),
        k_new=nothing if status is None else _strided(case.k_BUTD),
        v_new=nothing if status is None else _strided(case.v_BUTD),
        **_cache(case),
        lse=lse_BHT.data_ptr(),
        workspace=workspace.data_ptr(),
        status=None if status is None else status.data_ptr(),
        scaling=case.scaling,
        batch=batch,
        kv_heads=kv_heads,
        group=group,
        tokens=tokens,
        dim=dim,
        ctas=ctas,
        wide=1,
        dtype=_DTYPE[case.k_RD.dtype],
        settled=ctas % 2,
    )
    written, of_pieces = (int((~part.isnan()).sum()) for part in (workspace[size:], workspace[len(counters) : size]))
    return Result(out_BHTD, lse_BHT, int((counters.view(torch.int32) != 0).sum()), written, of_pieces)


def appended(case: Case) -> tuple[Case, set[int]]:
    """Return the case as it must be after appending, and the possible values of status."""
    after, full = case.copy(), set()
    _, kv_heads, _, tokens, _ = case.sizes
    for lane, segment in enumerate(case.segment_N.tolist()):
        row, head, slot = lane // kv_heads, lane % kv_heads, int(case.start_S1[segment] + case.length_S[segment])
        if slot + tokens > int(case.start_S1[segment + 1]):
            full.add(1 + segment)
            continue
        after.k_RD[slot : slot + tokens] = case.k_BUTD[row, head]
        after.v_RD[slot : slot + tokens] = case.v_BUTD[row, head]
        after.length_S[segment] += tokens
    return after, full or {0}


def same_cache(case: Case, other: Case) -> bool:
    """Return True if both caches are equal to the bit, slack included."""
    buffers = ((case.k_RD, other.k_RD), (case.v_RD, other.v_RD))
    return all(torch.equal(_bits(a), _bits(b)) for a, b in buffers) and torch.equal(case.length_S, other.length_S)


def problems(case: Case, result: Result) -> list[str]:
    """Return what is wrong with a decode over the case; nothing if it is right."""
    _, kv_heads, group, tokens, dim = case.sizes
    problems_seen = [f"{result.counters_left} counters are not zero"] if result.counters_left else []
    if result.written_after:
        problems_seen.append(f"{result.written_after} floats after the workspace are written")
    for lane, segment in enumerate(case.segment_N.tolist()):
        row, heads = lane // kv_heads, slice(lane % kv_heads * group, (lane % kv_heads + 1) * group)
        start, length = int(case.start_S1[segment]), int(case.length_S[segment])
        k_LD, v_LD = (x_RD[start : start + length].double() for x_RD in (case.k_RD, case.v_RD))
        sees_C = (length - tokens + 1 + torch.arange(tokens)).repeat(group)
        logits_CL = case.q_BHTD[row, heads].reshape(-1, dim).double() @ k_LD.T * case.scaling
        logits_CL.masked_fill_(torch.arange(length) >= sees_C[:, None], -torch.inf)
        out_CD = result.out_BHTD[row, heads].reshape(-1, dim).double()
        lse_C = result.lse_BHT[row, heads].reshape(-1).double()
        blind_C = sees_C <= 0
        if not (out_CD[blind_C] == 0).all() or not (lse_C[blind_C] == -torch.inf).all():
            problems_seen.append(f"lane {lane}: a query that sees nothing does not give 0")
        if blind_C.all():
            continue
        ref_CD = logits_CL[~blind_C].softmax(1) @ v_LD
        error = float((out_CD[~blind_C] - ref_CD).norm() / ref_CD.norm())
        if not error < MOST_ERROR[case.k_RD.dtype]:
            problems_seen.append(f"lane {lane}: relative error {error:.1e}")
        off = float((lse_C[~blind_C] - logits_CL[~blind_C].logsumexp(1)).abs().max())
        if not off < 2e-3:
            problems_seen.append(f"lane {lane}: log-sum-exp off by {off:.1e}")
    return problems_seen


def sources(folder: Path, dim: int, right: str = "", wrong: str = "", only: str = "both") -> Path:
    """Write the sources to a folder, decode for bf16 and one head dimension only, `right` replaced by `wrong`.

    Args:
        only: the kernels of decode.cu: "narrow" those for up to 8 query columns, "wide" those for more, or "both".
    """
    copy = copy_sources(folder, right, wrong)
    decode = unit(copy, "decode.cu")
    others = [line for line in decode.read_text().splitlines() if not line.strip().startswith("KVB_CASE(")]
    one_dim = "\n".join(others).replace("switch (dim) {", f"switch (dim) {{ KVB_CASE({dim})")
    test = "if (is_wide<D>(columns))"
    assert one_dim.count(test) == 2
    one_dim = one_dim.replace(test, _ONLY[only] or test)
    decode.write_text(one_dim.replace("call.template operator()<fp16, D>()", "kUnsupported") + "\n")
    return copy


def with_bug(right: str, wrong: str, file: str = "decode.cu") -> library.Library:
    """Compile one .cu file for the CPU, with a mistake in it or in a header; for bf16, D = 64 and few query columns."""
    with tempfile.TemporaryDirectory() as scratch:
        return _built(sources(Path(scratch), 64, right, wrong, only="narrow"), file)


@functools.cache
def with_values(only: str, *defines: str) -> library.Library:
    """Compile decode.cu for the CPU with other values of decode/tuning.h, "NAME=value"; for bf16 and D = 64.

    Args:
        only: as in `sources`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _built(sources(Path(scratch), 64, only=only), "decode.cu", *(f"-DKVB_{define}" for define in defines))


def _built(copy: Path, file: str, *more: str) -> library.Library:
    built = copy / "libkvb.so"
    flags = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", *more]
    subprocess.run([compilers.gxx(), *flags, "-I", copy, unit(copy, file), "-o", built], check=True)
    _counter_bytes(built)  # while the file is there
    return library.Library(built)


@functools.cache
def _counter_bytes(path: Path) -> int:
    opened = ctypes.CDLL(str(path))
    if not hasattr(opened, "kvb_decode_counter_bytes"):
        return 0
    opened.kvb_decode_counter_bytes.restype = ctypes.c_int64
    return int(opened.kvb_decode_counter_bytes())


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int16)


def _cache(case: Case) -> dict[str, int]:
    parts = {"k": case.k_RD, "v": case.v_RD, "start": case.start_S1, "length": case.length_S, "segment": case.segment_N}
    return {name: x.data_ptr() for name, x in parts.items()}


def _strided(x: Tensor) -> tuple[int, ...]:
    return x.data_ptr(), *x.stride()[:-1]
