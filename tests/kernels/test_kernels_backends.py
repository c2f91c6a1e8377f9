"""The backends: the same appends and attention as the reference in double precision.

Shape suffixes as in kvbench_kernels.backends.base; P query positions of all sequences one after the other.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor

from kvbench_kernels import backends, build, ops
from kvbench_kernels.backends import AttentionSpec, Buffers, Lanes, base, flash
from kvbench_kernels.backends.base import Backend
from kvbench_kernels.backends.flash import FlashBackend
from kvbench_kernels.backends.slab import Slab
from kvbench_kernels.ops import reference
from tests.helpers.kernels_prefill import generator

CPU = torch.device("cpu")
ROWS, KV_HEADS, GROUP, DIM, SCALING = 3, 2, 4, 64, 0.125
needs_gxx = pytest.mark.gxx


def naive_varlen(q, k, v, starts, most, used_S, scaling):
    """Compute what flash-attention promises: sequences one after the other, causal up to the last query and key."""
    (first_S1, start_S1), out = starts, torch.zeros_like(q)
    assert first_S1.dtype == start_S1.dtype == used_S.dtype == torch.int32 and k.shape[1] == 1
    for s, used in enumerate(used_S.tolist()):
        assert used <= most[1] and int(first_S1[s + 1] - first_S1[s]) == most[0]
        q_TGD = q[first_S1[s] : first_S1[s + 1]].double()
        k_LD, v_LD = (x[start_S1[s] : start_S1[s] + used, 0].double() for x in (k, v))
        hidden_TL = torch.arange(used) > torch.arange(most[0])[:, None] + used - most[0]
        logits_GTL = (q_TGD.transpose(0, 1) @ k_LD.T * scaling).masked_fill(hidden_TL, -torch.inf)
        if used:
            out[first_S1[s] : first_S1[s + 1]] = (logits_GTL.softmax(-1) @ v_LD).transpose(0, 1).to(q.dtype)
    return out


class World:
    """An arena of all rows' segments in slabs of equal capacity, and its twin in double precision."""

    def __init__(self, device: torch.device, dtype: torch.dtype, room: int = 12) -> None:
        g = generator(0)
        self.total = ROWS * KV_HEADS
        lengths = torch.randint(1, 150, (self.total,), generator=g).sort(descending=True).values.tolist()
        capacities = [-(-(length + room) // 8) * 8 for length in lengths]
        capacities[1] = capacities[0]  # two in one slab, the others alone
        starts = torch.tensor([0, *capacities]).cumsum(0).tolist()
        slabs = [Slab(0, capacities[0], 0, 2)]
        slabs += [Slab(starts[i], capacities[i], i, i + 1) for i in range(2, self.total)]
        live_R = torch.zeros(starts[-1], dtype=torch.bool)
        for start, length in zip(starts, lengths, strict=False):
            live_R[start : start + length] = True
        k_RD, v_RD = (torch.randn(starts[-1], DIM, generator=g).to(dtype) for _ in range(2))
        bias_R = torch.zeros(starts[-1], dtype=dtype).masked_fill(~live_R, -torch.inf).to(device)
        start_S1, length_S = torch.tensor(starts).int(), torch.tensor(lengths).int()
        self.exact = [k_RD.double(), v_RD.double(), start_S1, length_S.clone()]
        parts = (x.to(device) for x in (k_RD, v_RD, start_S1, length_S))
        self.buffers = Buffers(*parts, max(capacities), slabs, bias_R)
        self.lengths, self.capacities, self.device, self.dtype = lengths, capacities, device, dtype
        self.of = torch.randperm(self.total, generator=g).view(ROWS, KV_HEADS)  # segment of each row and head
        self.g = g

    def lanes(self, rows: list[int]) -> Lanes:
        return Lanes(self.of[rows].flatten().tolist(), self.total, self.device)

    def step(self, backend: Backend, rows: list[int], tokens: int, lanes: Lanes) -> float:
        """Run one call here and on the twin; return the relative error of the output. Buffers must agree."""
        shapes = ((GROUP * KV_HEADS, "q"), (KV_HEADS, "k"), (KV_HEADS, "v"))
        q, k, v = (
            torch.randn(len(rows), tokens, heads, DIM, generator=self.g).to(self.dtype).transpose(1, 2)
            for heads, _ in shapes
        )
        for segment in self.of[rows].flatten().tolist():
            self.lengths[segment] += tokens
        here = (x.to(self.device) for x in (q, k, v))
        out = backend.append_and_attend(*here, self.buffers, lanes, SCALING, lambda: self.lengths)
        expected, status = torch.empty_like(q, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
        segment_N = lanes.segment_N.cpu()
        twin = (q.double(), k.double(), v.double(), *self.exact, segment_N)
        reference.ragged_append_decode(*twin, SCALING, expected, None, status)
        assert self.buffers.length_S.tolist() == self.lengths
        assert torch.equal(self.buffers.k_RD.cpu().double(), self.exact[0])
        assert torch.equal(self.buffers.v_RD.cpu().double(), self.exact[1])
        self.buffers.check()
        return float((out.cpu().double() - expected).norm() / expected.norm())


STEPS = [([0, 1, 2], 1), ([0, 1, 2], 1), ([2, 0], 3), ([1], 1), ([1], 2), ([2, 0], 1), ([0, 1, 2], 4)]


def walk(backend: Backend, world: World) -> float:
    """Return the worst error of several steps with changing rows and numbers of tokens."""
    return max(world.step(backend, rows, tokens, world.lanes(rows)) for rows, tokens in STEPS)


def result(name: str) -> Backend:
    return FlashBackend(naive_varlen) if name == "flash_attn" else backends.make_backend(name)


@pytest.mark.parametrize("name", [name for name in backends.NAMES if name != "cpu"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["f32", "bf16"])
def test_every_backend_appends_and_attends(name, dtype, bound):
    assert walk(result(name), World(CPU, dtype)) < bound


@needs_gxx
def test_the_compiled_backend_of_the_cpu_appends_and_attends():
    assert walk(result("cpu"), World(CPU, torch.float32)) < 1e-5


@needs_gxx
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 5e-3)], ids=["f16", "bf16"])
def test_the_cuda_backend_reaches_the_kernels(dtype, bound):
    with ops.emulated(build.host()):
        assert walk(result("cuda"), World(CPU, dtype)) < bound


class Recorder:
    """A backend that keeps the outputs of another one."""

    def __init__(self, backend: FlashBackend) -> None:
        self.backend, self.outputs = backend, list[Tensor]()

    def append_and_attend(self, *arguments: object) -> Tensor:
        self.outputs.append(self.backend.append_and_attend(*arguments))
        return self.outputs[-1]


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_attention_appends_by_the_kernel_what_torch_appends(dtype: torch.dtype) -> None:
    """The outputs and the cache are equal to the bit, on the reference of the op and on its kernel."""
    worlds = [World(CPU, dtype) for _ in range(3)]
    by_torch, by_reference, by_kernel = (
        Recorder(FlashBackend(naive_varlen, how)) for how in (base.append, flash.append_by_op, None)
    )
    walk(by_torch, worlds[0])
    walk(by_reference, worlds[1])
    with ops.emulated(build.host()):
        walk(by_kernel, worlds[2])
    for recorder, world in ((by_reference, worlds[1]), (by_kernel, worlds[2])):
        pairs = zip(recorder.outputs, by_torch.outputs, strict=True)
        assert all(torch.equal(out.view(torch.int16), other.view(torch.int16)) for out, other in pairs)
        assert torch.equal(world.buffers.k_RD, worlds[0].buffers.k_RD)
        assert torch.equal(world.buffers.v_RD, worlds[0].buffers.v_RD)


def test_without_the_kernels_torch_appends_and_the_word_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    device, errors = torch.device("cuda", 7), [ValueError("no nvcc: install it\nmore")]

    def prepare(_: torch.device) -> None:
        raise errors.pop()

    monkeypatch.setattr(ops, "prepare", prepare)
    flash.find_append.cache_clear()
    try:
        expected = base.append, "torch, without kvb.ragged_append: no nvcc: install it"
        for _ in range(2):  # the second call does not compile again
            assert flash.find_append(device) == expected
    finally:
        flash.find_append.cache_clear()
    assert flash.find_append(CPU) == (flash.append_by_op, "kvb.ragged_append")


@pytest.mark.parametrize("name", ["sdpa", "torch"])
def test_slabs_need_the_lengths_on_the_host(name):
    world, q = World(CPU, torch.float32), torch.zeros(3, 8, 1, DIM)
    with pytest.raises(ValueError, match=f"kernel={name}: needs the lengths on the host"):
        result(name).append_and_attend(q, q[:, :2], q[:, :2], world.buffers, world.lanes([0, 1, 2]), SCALING)


@pytest.mark.parametrize("name", ["cuda", "flash_attn"])
def test_an_append_without_room_is_told(name):
    world = World(CPU, torch.bfloat16, room=0)
    q = torch.zeros(3, 8, 9, DIM, dtype=torch.bfloat16)
    lanes = world.lanes([0, 1, 2])
    result(name).append_and_attend(q, q[:, :2], q[:, :2], world.buffers, lanes, SCALING)
    with pytest.raises(RuntimeError, match=r"segment \d of a ragged cache had no room"):
        world.buffers.check()
    world.buffers.status.fill_(-1)
    with pytest.raises(RuntimeError, match="two calls of a ragged kernel used the same workspace at the same time"):
        world.buffers.check()


def test_a_segment_has_one_lane():
    with pytest.raises(ValueError, match="segments: two lanes have the same segment"):
        Lanes([0, 1, 1], 4, CPU)


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name in backends.NAMES if name != "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_backend_on_the_gpu(name, dtype):
    device = torch.device("cuda")
    assert backends.choose_backend(name, AttentionSpec(device, dtype, DIM, GROUP)).name == name
    assert walk(backends.make_backend(name), World(device, dtype)) < 1e-2


@pytest.mark.cuda
def test_auto_on_the_gpu():
    chosen = backends.choose_backend("auto", AttentionSpec(torch.device("cuda"), torch.bfloat16, 128, 4))
    assert chosen.name == "cuda" and chosen.reason.startswith("the fastest on ")
    chosen = backends.choose_backend("auto", AttentionSpec(torch.device("cuda"), torch.float32, 128, 4))
    assert chosen.name == "sdpa" and "not cuda: dtype float32: needs bfloat16 or float16" in chosen.reason


def package(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    """Install modules like those of flash-attn, with these functions."""
    for module, _ in flash._PACKAGES:
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for place, function in functions.items():
        module, name = flash._PACKAGES[int(place[1:])]
        setattr(sys.modules[module], name, function)


def flash_3(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, num_splits=0,
):  # fmt: skip
    assert causal == (max_seqlen_q > 1)
    return naive_varlen(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), seqused_k, softmax_scale)


def flash_2_inner(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
    window_size_left=-1, alibi_slopes=None, block_table=None, seqused_k=None,
):  # fmt: skip
    assert dropout_p == 0
    out = flash_3(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None, seqused_k, softmax_scale, causal
    )
    return out, torch.zeros(1), None, None


def flash_2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, block_table=None):
    raise AssertionError("takes no live lengths")


@pytest.mark.parametrize(
    ("functions", "source"),
    [
        ({"_0": flash_3, "_1": flash_2}, "flash_attn_interface.flash_attn_varlen_func"),
        ({"_1": flash_2, "_2": flash_2_inner}, "flash_attn.flash_attn_interface._flash_attn_varlen_forward"),
    ],
    ids=["3", "2"],
)
def test_an_installed_flash_attention_is_used(monkeypatch, functions, source):
    package(monkeypatch, **functions)
    varlen, matches = flash.find()
    assert matches == source
    assert walk(FlashBackend(varlen), World(CPU, torch.float32)) < 1e-5


class PrivateOp:
    """Stands for torch's private op: computes what it promises, and keeps its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, object]] = []
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", self)

    def __call__(
        self, query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *,
        scale=None, window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None, block_table=None,
        num_splits=None,
    ):  # fmt: skip
        assert (dropout_p, return_debug_mask, alibi_slopes, block_table, num_splits) == (0.0, False, None, None, None)
        assert query.shape[1:] == (GROUP, DIM) and key.shape[1:] == (1, DIM)
        # The op itself makes a causal call one of a window without later keys.
        window = -1 if window_size_left is None else window_size_left, 0 if is_causal else window_size_right or -1
        given = {"starts": (cum_seq_q.tolist(), cum_seq_k.tolist()), "most": (max_q, max_k), "causal": is_causal}
        self.calls.append(given | {"window": window, "scale": scale, "used": seqused_k.tolist()})
        out = naive_varlen(query, key, value, (cum_seq_q, cum_seq_k), (max_q, max_k), seqused_k, scale)
        return out, torch.zeros(1), torch.zeros(1), None, None


def public(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    """Call torch's private op as varlen_attn of torch 2.12 does."""
    assert enable_gqa and return_aux is None and block_table is None and num_splits is None
    assert isinstance(window_size, tuple)  # a list is no causal window for it
    return torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, 0.0, window_size == (-1, 0), return_debug_mask=False,
        scale=scale, window_size_left=window_size[0], window_size_right=window_size[1], seqused_k=seqused_k,
    )[0]  # fmt: skip


def public_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    seqused_k=None,
):  # fmt: skip
    raise AssertionError("takes no groups of query heads")


def torch_has(monkeypatch: pytest.MonkeyPatch, function: object) -> None:
    """Let torch have flash-attention, and this public function; none if it is None."""
    package(monkeypatch, _1=flash_2)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    module = types.ModuleType("torch.nn.attention.varlen")
    if function is not None:
        module.varlen_attn = function
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("function", "source"),
    [(public, "varlen_attn"), (public_of_2_11, "_flash_attention_forward"), (None, "_flash_attention_forward")],
    ids=["2.12", "2.11", "2.9"],
)
def test_else_that_of_torch(monkeypatch, function, source):
    """Whichever function is called, the arguments of the private op are these, so the answers are the same."""
    torch_has(monkeypatch, function)
    varlen, matches = flash.find()
    assert matches == f"{source} of torch {torch.__version__}"
    op, world = PrivateOp(monkeypatch), World(CPU, torch.float32)
    assert walk(FlashBackend(varlen), world) < 1e-5
    lengths = World(CPU, torch.float32).lengths
    for call, (rows, tokens) in zip(op.calls, STEPS, strict=True):
        called = world.of[rows].flatten().tolist()
        lengths = [length + tokens * (s in called) for s, length in enumerate(lengths)]
        assert call == {
            "starts": ([tokens * s for s in range(world.total + 1)], world.buffers.start_S1.tolist()),
            "most": (tokens, max(world.capacities)),
            "causal": tokens > 1,
            "window": (-1, 0) if tokens > 1 else (-1, -1),
            "scale": SCALING,
            "used": [length * (s in called) for s, length in enumerate(lengths)],
        }


def test_the_real_public_function_of_torch_calls_the_private_op(monkeypatch):
    """With torch 2.12 or newer, nothing but the op stands between our call and the GPU; older ones call it directly."""
    package(monkeypatch)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    varlen, matches = flash.find()
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert matches.startswith("varlen_attn of " if version >= (2, 12) else "_flash_attention_forward of ")
    op = PrivateOp(monkeypatch)
    assert walk(FlashBackend(varlen), World(CPU, torch.float32)) < 1e-5
    assert len(op.calls) == len(STEPS)


def test_a_torch_without_live_lengths_is_told(monkeypatch):
    torch_has(monkeypatch, None)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", torch.ops.aten._flash_attention_backward)
    with pytest.raises(ValueError, match="has no _flash_attention_forward with seqused_k"):
        flash.find()
