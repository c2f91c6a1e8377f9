"""Append and decode under AddressSanitizer (with leaks) and UndefinedBehaviorSanitizer, on the CPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvbench_kernels.build import compilers
from tests.helpers.kernels_cases import sources
from tests.helpers.kernels_prefill import SEED, needs_gxx
from tests.helpers.kernels_sources import unit

pytestmark = needs_gxx

FLAGS = ("-std=c++17", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OPEN = ("-DKVB_WHOLE_ITEMS=1", "-DKVB_TILE_AHEAD=1", "-DKVB_ONE_MERGE=48")  # what decode/tuning.h leaves off


def run(
    folder: Path, right: str = "", wrong: str = "", defines: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the driver over kernels for D = 80 (the last chunk and block are incomplete) and bf16."""
    copy = sources(folder, 80, right, wrong)
    driver, program = Path(__file__).with_name("kernels_sanitized.cpp"), folder / "driver"
    units = [driver, "-x", "c++", unit(copy, "decode.cu"), unit(copy, "append.cu")]
    subprocess.run([compilers.gxx(), *FLAGS, *defines, "-I", copy, *units, "-o", program], check=True)
    threads = {"KVB_HOST_SHUFFLE": str(SEED % 1000), "KVB_HOST_SHUFFLE_BLOCKS": str(SEED % 1000)}
    return subprocess.run([program, str(SEED)], env={**os.environ, **threads}, capture_output=True, text=True)


@pytest.mark.parametrize("defines", [(), OPEN], ids=["as measured", "all on"])
def test_nothing_is_read_or_written_where_it_must_not_be(tmp_path, defines):
    done = run(tmp_path, defines=defines)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"KVBENCH_SEED={SEED}"


def test_a_read_behind_the_end_is_reported(tmp_path):
    done = run(tmp_path, "min(tile + value_key(i), end - 1)", "min(tile + value_key(i), end)")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-" in done.stderr and "in kvb::Rows<" in done.stderr


def test_a_request_past_the_end_is_reported(tmp_path):
    done = run(tmp_path, "(min(tile + kTile, end) - tile);", "(tile < end ? kTile : 0);", OPEN)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-" in done.stderr and "kvb::start_narrow<" in done.stderr
