"""The kernels for prompts and for a step's small operations under AddressSanitizer and UndefinedBehaviorSanitizer.

They run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvbench_kernels.build import compilers
from tests.helpers.kernels_prefill import SEED, compiled, needs_gxx

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys, torch
from pathlib import Path
from kvbench_kernels import ops, parity
from kvbench_kernels.ops import library
from tests.kernels import test_kernels_gather, test_kernels_score, test_kernels_select
from tests.helpers.kernels_prefill import generator
units = sys.argv[3:]
kernels, g = library.load(sys.argv[1]), generator(60)
for module in (test_kernels_gather, test_kernels_score):  # the end of a tensor is to be that of an allocation
    module.surrounded = lambda x, extra=0: x.clone()
for dim in map(int, sys.argv[2].split(",")):
    for group, window, past in ((3, 9, 70), (1, 5, 256), (4, 8, 1)) if "score.cu" in units else ():
        assert not test_kernels_score.window_score_differs(kernels, g, group, window, past, dim, torch.bfloat16)
        assert not test_kernels_score.lse_or_sums_differ(kernels, g, group, past + window, dim, torch.bfloat16)
    for tokens in (1, 33, 2050) if "gather.cu" in units else ():
        assert not test_kernels_gather.gather_differs(kernels, g, tokens, dim, torch.bfloat16)
        assert not test_kernels_gather.relayout_differs(kernels, g, tokens % 90, dim, torch.bfloat16)
for kind in (test_kernels_select.quantised, test_kernels_select.bits) if "select.cu" in units else ():
    for heads, candidates in ((1, 1), (3, 33), (9, 1100)):
        for scope in test_kernels_select.SCOPES:
            total = heads * candidates // 3
            assert not test_kernels_select.differs(kernels, kind(g, heads, candidates), total, 0.2, scope)
unit_of = {"add_rms_norm": "step.cu", "rope": "step.cu", "silu_mul": "step.cu", "linear": "linear.cu"}
unit_of["packed_decode"] = "packed.cu"
with ops.emulated(Path(sys.argv[1])):
    for case in parity.cases(large=False):
        if unit_of.get(case.op) in units:
            assert case.run(torch.device("cpu"), 1) <= case.bound
print("clean")
"""
FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
UNITS = ("score.cu", "lse.cu", "columns.cu", "select.cu", "gather.cu", "step.cu", "linear.cu", "packed.cu")


def run(
    folder: Path, units: Sequence[str], dims: set[int], seed: int, right: str = "", wrong: str = ""
) -> subprocess.CompletedProcess[str]:
    """Compile some units for some head dimensions, with a planted bug or without, and run what calls them."""
    library_file = compiled(folder, units, FLAGS, dims, right, wrong)
    environment = {
        **os.environ,
        "LD_PRELOAD": compilers.sanitizer_runtimes(),
        "ASAN_OPTIONS": "detect_leaks=0",  # those of Python itself
        "KVBENCH_SEED": str(seed),
        "KVB_HOST_SHUFFLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }
    command = [sys.executable, "-c", RUN, library_file, ",".join(map(str, sorted(dims))), *units]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_gxx
@pytest.mark.slow
def test_no_kernel_touches_what_is_not_its_own(tmp_path: Path) -> None:
    done = run(tmp_path, UNITS, {64, 80}, SEED)
    assert done.returncode == 0 and "clean" in done.stdout, f"KVBENCH_SEED={SEED}\n{done.stderr[-4000:]}"


PLANTED = {
    "a write after the last element": (
        ["step.cu"], "if (item >= args.rows * chunks) return;", "", "silu_mul",
    ),
    "a read after the last key": (
        ["score.cu", "lse.cu"], "tokens - 1) * k_token", "tokens + 8) * k_token", "score/tile.h",
    ),
    "a read after the last token": (
        ["linear.cu"], "min(8 * block + thread_row(), args.tokens - 1)", "(8 * block + thread_row())",
        "load_written_if",
    ),
}  # fmt: skip


@needs_gxx
@pytest.mark.slow
@pytest.mark.parametrize(("units", "right", "wrong", "place"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_reported(tmp_path: Path, units: list[str], right: str, wrong: str, place: str) -> None:
    """The memory after a tensor's end may be one that was freed before, or one that no tensor ever had."""
    done = run(tmp_path, units, {64}, 1, right, wrong)
    assert done.returncode != 0 and "AddressSanitizer: heap-" in done.stderr and place in done.stderr
