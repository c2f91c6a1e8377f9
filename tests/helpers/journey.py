"""The files that one run passes through: `python -m tests.helpers.journey model=tiny budget=0.2 paths.outputs=/tmp/x`.

Runs `kvbench` with these overrides in this process and lists, in order of their first call, the files of this project
whose functions were called. What runs while a module is imported does not count.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import kvbench

ROOT = Path(kvbench.__file__).resolve().parents[1]
_OWN = tuple(str(ROOT / folder) for folder in ("kvbench", "kernels/kvbench_kernels", "hydra_plugins"))


class Journey:
    """The functions of this project that were called, by file, in order of the first call."""

    def __init__(self) -> None:
        self.files: dict[str, Counter[str]] = {}
        self._seen: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; the hook that `sys.setprofile` takes."""
        code = frame.f_code
        if event != "call" or code in self._seen or not code.co_filename.startswith(_OWN):
            return
        if not _while_importing(frame):
            self._seen.add(code)
            self.files.setdefault(code.co_filename, Counter())[code.co_qualname] += 1


def _while_importing(frame: FrameType) -> bool:
    """Return True if the body of a module or of a class is being executed."""
    this: FrameType | None = frame
    while this is not None:
        if this.f_code.co_name == "<module>" and this.f_code.co_filename.startswith(_OWN):
            return True
        this = this.f_back
    return not frame.f_code.co_flags & 0x2  # CO_NEWLOCALS: the body of a class has none


def main(overrides: list[str]) -> int:
    """Run kvbench with `overrides` and print the files, with the number of their functions."""
    from kvbench.__main__ import main as run

    sys.argv = ["kvbench", *overrides]
    journey = Journey()
    threading.setprofile(journey)
    sys.setprofile(journey)
    try:
        result = run()
    finally:
        sys.setprofile(None)
    for number, (file, functions) in enumerate(journey.files.items(), start=1):
        print(f"{number:3} {Path(file).relative_to(ROOT)}: {', '.join(functions)}")
    return int(bool(result))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
