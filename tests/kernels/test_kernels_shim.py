"""The host shim that runs CUDA C++ on the CPU: it computes what a GPU would, and stops where one would hang."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvbench_kernels import build
from kvbench_kernels.build import compilers
from tests.helpers.kernels_prefill import DTYPES, generator, needs_gxx, shuffled

pytestmark = needs_gxx

ALL_WRITE, NOBODY_WRITES, ONE_LEAVES, ONE_WAITS_FOR_EVER, NO_BARRIER = range(5)


@pytest.fixture(scope="module", params=((), ("-DKVB_HOST_UCONTEXT",)), ids=("own switch", "ucontext"))
def shim(request, tmp_path_factory) -> ctypes.CDLL:
    result = tmp_path_factory.mktemp("shim") / "libshim.so"
    flags = [
        "-x",
        "c++",
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]
    source = Path(__file__).with_name("kernels_shim.cu")
    subprocess.run([compilers.gxx(), *flags, *request.param, "-I", build.csrc(), source, "-o", result], check=True)
    return ctypes.CDLL(str(result))


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def last_words(call: Callable[[], object], folder: Path) -> str:
    """Return what a call that aborts its process writes; empty if it does not abort."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # an abort is what we want
        os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        call()
        os._exit(0)
    aborted = os.waitpid(child, 0)[1] != 0
    return (folder / "stderr").read_text() if aborted else ""


def test_threads_exchange_through_shared_memory(shim):
    out = torch.zeros(4, 64, dtype=torch.int32)
    expected = torch.arange(63, -1, -1) + 100 * torch.arange(4)[:, None]
    for seed in (None, 1, 2):
        if seed is None:
            shim.shim_reverse(pointer(out), 4, ALL_WRITE)
        else:
            with shuffled(seed):
                shim.shim_reverse(pointer(out), 4, ALL_WRITE)
        assert (out == expected).all()
        shim.shim_reverse(pointer(out), 4, NOBODY_WRITES)
        assert (out == -1).all(), "shared memory is not poisoned before each block"


def test_a_thread_that_has_ended_is_not_waited_for(shim):
    out = torch.zeros(64, dtype=torch.int32)
    shim.shim_reverse(pointer(out), 1, ONE_LEAVES)
    assert out[60] == -1 and out[3] == 0 and out[0] == 63


def test_a_missing_barrier_shows(shim):
    out = torch.zeros(64, dtype=torch.int32)
    shim.shim_reverse(pointer(out), 1, NO_BARRIER)
    assert (out == -1).any() and (out != -1).any()


def test_blocks_run_in_random_order_on_demand(shim):
    out, count, orders = torch.zeros(20, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), []
    for seed in (1, 2):
        with shuffled(seed):
            shim.shim_order(pointer(out), pointer(count.zero_()), 20)
        orders.append(out.tolist())
    shim.shim_order(pointer(out), pointer(count.zero_()), 20)
    assert out.tolist() == list(range(20)) == sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != out.tolist() != orders[1] != orders[0]


def test_warp_operations(shim):
    out = torch.zeros(9, 32, dtype=torch.int32)
    lane = torch.arange(32)
    expected = torch.stack(
        [
            lane ^ 5,
            torch.where(lane % 8 >= 3, lane - 3, lane),
            torch.where(lane + 3 < 32, lane + 3, lane),
            torch.full((32,), sum(1 << i for i in range(0, 32, 3))),
            torch.full((32,), 1),
            torch.full((32,), 496),
            torch.where(lane < 16, 15 - lane, 47 - lane),
            torch.full((32,), 7),
            torch.full((32,), 9),
        ]
    )
    shim.shim_warp(pointer(out))
    assert torch.equal(out.long(), expected)
    with shuffled(3):
        shim.shim_warp(pointer(out.zero_()))
    assert torch.equal(out.long(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrix_product_and_transpose(shim, dtype):
    g = generator(1)
    a, b = torch.randn(16, 16, generator=g).to(dtype), torch.randn(16, 8, generator=g).to(dtype)
    c, transposed = torch.randn(16, 8, generator=g), torch.zeros(8, 8, dtype=dtype)
    expected = c.double() + a.double() @ b.double()
    b_transposed = b.T.contiguous()
    shim.shim_multiply(*map(pointer, (a, b_transposed, c, transposed)), DTYPES.index(dtype))
    assert (c - expected).abs().max() < 1e-5
    assert torch.equal(transposed, a[:8, :8].T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversion_rounds_as_torch_does(shim, dtype):
    g = generator(2)
    numbers = torch.randn(5000, generator=g) * 2.0 ** torch.randint(-40, 40, (5000,), generator=g)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, 65504, 65519.99, 65520, 2.0**-24, 2.0**-25, 2.0**-25 * 1.01]
    )
    numbers = torch.cat([numbers, special])
    out = torch.zeros(len(numbers), dtype=dtype)
    shim.shim_convert(pointer(numbers), pointer(out), len(numbers) // 2, DTYPES.index(dtype))
    assert torch.equal(out.view(torch.int16), numbers.to(dtype).view(torch.int16))


def test_what_would_hang_or_fault_stops_with_a_reason(shim, tmp_path):
    out = torch.zeros(4096, dtype=torch.int32)
    cases: dict[str, Callable[[], object]] = {
        "deadlock: 63 threads wait at a block barrier, 1 in a warp operation": lambda: shim.shim_reverse(
            pointer(out), 1, ONE_WAITS_FOR_EVER
        ),
        "lane 0 shuffles from lane 20, which takes no part": shim.shim_half_a_warp,
        "lanes of a warp meet in different operations": shim.shim_different_operations,
        "misaligned load": lambda: shim.shim_load(ctypes.c_void_p(out.data_ptr() + 8), pointer(out)),
        "impossible launch: grid (1,1,1), block (2048,1,1)": lambda: shim.shim_too_many_threads(pointer(out)),
    }
    for reason, call in cases.items():
        assert reason in last_words(call, tmp_path)
