"""The process takes the memory that the cache says it takes: buffers of an earlier layout go back to the system."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch
from pathlib import Path
from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.store.kivi import Kivi

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def entry(row, store):
    return Entry(row, torch.rand(2, 1000) < 0.5, 50, store=store)

LAYERS, PROMPTS, ROWS = 8, 3, 15
torch.rand(8_000_000)  # glibc's limit rises with the largest block that was freed
cache = RaggedCache(LAYERS)
before = resident()
for prompt in range(PROMPTS):
    for layer in range(LAYERS):
        k, v = torch.randn(2, 2, 1000, 64).unbind()
        rows = range(prompt * ROWS, (prompt + 1) * ROWS)
        cache.add(layer, [entry(row, Kivi(8, 32, 32) if row % 3 == 0 else None) for row in rows], k, v)
print(cache.bytes(), resident() - before)
cache.release(list(range(0, PROMPTS * ROWS, 4)))
cache.compact()
print(cache.bytes(), resident() - before)
"""


def test_the_process_takes_what_the_cache_holds() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    joined, compacted = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    for held, resident in (joined, compacted):
        assert held > 50 * 2**20
        assert resident < 1.25 * held + 16 * 2**20, f"{resident / 2**20:.0f} MiB for {held / 2**20:.0f}"
    assert compacted[0] < 0.8 * joined[0]
