"""The kernels for prompts and for a step's small operations under AddressSanitizer and UndefinedBehaviorSanitizer.

They run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
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
kernels, g = library.load(sys.argv[1]), generator(60)
for module in (test_kernels_gather, test_kernels_score):  # the end of a tensor is to be that of an allocation
    module.surrounded = lambda x, extra=0: x.clone()
for dim in (64, 80):
    for group, window, past in ((3, 9, 70), (1, 5, 256), (4, 8, 1)):
        assert not test_kernels_score.window_score_differs(kernels, g, group, window, past, dim, torch.bfloat16)
        assert not test_kernels_score.lse_or_sums_differ(kernels, g, group, past + window, dim, torch.bfloat16)
    for tokens in (1, 33, 2050):
        assert not test_kernels_gather.gather_differs(kernels, g, tokens, dim, torch.bfloat16)
        assert not test_kernels_gather.relayout_differs(kernels, g, tokens % 90, dim, torch.bfloat16)
for kind in (test_kernels_select.quantised, test_kernels_select.bits):
    for heads, candidates in ((1, 1), (3, 33), (9, 1100)):
        for scope in test_kernels_select.SCOPES:
            total = heads * candidates // 3
            assert not test_kernels_select.differs(kernels, kind(g, heads, candidates), total, 0.2, scope)
with ops.emulated(Path(sys.argv[1])):
    for case in parity.cases(large=False):
        if case.op in ("add_rms_norm", "rope", "silu_mul", "linear", "packed_decode"):
            assert case.run(torch.device("cpu"), 1) <= case.bound
print("clean")
"""
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
UNITS = ("score.cu", "lse.cu", "columns.cu", "select.cu", "gather.cu", "step.cu", "linear.cu", "packed.cu")


def run(library_file: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LD_PRELOAD": compilers.sanitizer_runtimes(),
        "ASAN_OPTIONS": "detect_leaks=0",  # those of Python itself
        "KVBENCH_SEED": str(SEED),
        "KVB_HOST_SHUFFLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }
    return subprocess.run(
        [sys.executable, "-c", RUN, library_file], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@needs_gxx
@pytest.mark.slow
def test_no_kernel_touches_what_is_not_its_own(tmp_path: Path) -> None:
    done = run(compiled(tmp_path, UNITS, FLAGS, {64, 80}))
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-4000:]


@needs_gxx
@pytest.mark.slow
def test_a_planted_write_behind_the_last_element_is_reported(tmp_path: Path) -> None:
    done = run(compiled(tmp_path, UNITS, FLAGS, {64, 80}, "if (item >= args.rows * chunks) return;"))
    assert done.returncode != 0 and "AddressSanitizer: heap-" in done.stderr and "silu_mul" in done.stderr


@needs_gxx
@pytest.mark.slow
def test_a_planted_read_behind_the_last_key_is_reported(tmp_path: Path) -> None:
    result = compiled(tmp_path, UNITS[:2], FLAGS, {64}, "tokens - 1) * k_token", "tokens + 8) * k_token")
    done = run(result)
    assert done.returncode != 0 and "AddressSanitizer: heap-" in done.stderr and "score/tile.h" in done.stderr


@needs_gxx
@pytest.mark.slow
def test_a_planted_read_behind_the_last_token_is_reported(tmp_path: Path) -> None:
    done = run(
        compiled(
            tmp_path,
            UNITS,
            FLAGS,
            {64, 80},
            "min(8 * block + thread_row(), args.tokens - 1)",
            "(8 * block + thread_row())",
        )
    )
    # the memory after the last token may be one that was freed before
    assert done.returncode != 0 and "AddressSanitizer: heap-" in done.stderr and "load_written_if" in done.stderr
