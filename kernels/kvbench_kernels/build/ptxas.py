"""Reader of what `-Xptxas -v` prints about each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import TypedDict

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Kernel(TypedDict):
    """One kernel on one architecture; sizes in bytes, `shared` is the static shared memory of a block."""

    name: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def kernels(output: str) -> list[Kernel]:
    """Return the kernels in nvcc's output, in its order; names are demangled if c++filt is installed."""
    result: list[Kernel] = []
    kernel: Kernel | None = None
    for line in output.splitlines():
        if entry := _ENTRY.search(line):
            kernel = Kernel(name=entry[1], arch=entry[2], registers=0, stack=0, spill_stores=0, spill_loads=0, shared=0)
            result.append(kernel)
        elif kernel is not None and (frame := _FRAME.search(line)):
            # Device functions that are not inlined have frames of their own, which count for the kernel before them.
            kernel["stack"] = max(kernel["stack"], int(frame[1]))
            kernel["spill_stores"] += int(frame[2])
            kernel["spill_loads"] += int(frame[3])
        elif kernel is not None and (used := _USED.search(line)):
            kernel["registers"] = int(used[1])
            kernel["shared"] = int(used[2] or 0)
    for kernel, name in zip(result, _demangled([k["name"] for k in result]), strict=True):
        kernel["name"] = name
    return result


def _demangled(names: Iterable[str]) -> list[str]:
    names = list(names)
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    readable = done.stdout.splitlines()
    return readable if done.returncode == 0 and len(readable) == len(names) else names
