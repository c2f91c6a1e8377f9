"""The files that one run passes through: `python -m tests.helpers.journey model=tiny budget=0.2 paths.outputs=/tmp/x`.

Runs `kvbench` with these overrides in this process and lists, in order of their first call, the files of this project
whose functions were called. What runs while a module is imported does not count.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import kvbench

ROOT = Path(kvbench.__file__).resolve().parents[1]
_OWN = tuple(str(ROOT / folder) for folder in ("kvbench", "kernels/kvbench_kernels", "hydra_plugins"))


class Journey:
    """The functions of this project that a run calls.

    Attributes:
        stacks: {dotted name of a function: the files on the call stack when it was called, outermost first}. Of several
            calls of a station the last one counts: the first may belong to a check of the model and not to a sample.

    Args:
        stations: dotted names of the functions whose call stacks are wanted.
    """

    def __init__(self, stations: Collection[str] = ()) -> None:
        self.stacks: dict[str, list[str]] = {}
        self._stations = frozenset(stations)
        self._names: dict[CodeType, str] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; the hook that `sys.setprofile` takes."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_OWN) or not code.co_flags & 0x2:
            return  # the body of a class has no CO_NEWLOCALS
        if code in self._names and self._names[code] not in self._stations:
            return
        files: list[str] = []
        this: FrameType | None = frame
        while this is not None:
            if this.f_code.co_filename.startswith(_OWN):
                if this.f_code.co_name == "<module>":
                    return  # a module is being imported
                files.append(this.f_code.co_filename)
            this = this.f_back
        names = [str(Path(file).relative_to(ROOT)) for file in dict.fromkeys(reversed(files))]
        name = self._names.setdefault(code, f"{_module(names[-1])}.{code.co_qualname}")
        self.stacks[name] = names

    def files(self) -> list[str]:
        """Return the files of all functions, in order of their first call."""
        return list(dict.fromkeys(file for stack in self.stacks.values() for file in stack))


def _module(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "kernels" else parts).removesuffix(".__init__")


def trace(overrides: list[str], stations: Collection[str] = ()) -> Journey:
    """Run kvbench with `overrides` in this process and return what it called."""
    from kvbench.__main__ import main as run

    sys.argv = ["kvbench", *overrides]
    journey = Journey(stations)
    threading.setprofile(journey)
    sys.setprofile(journey)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return journey


def main(overrides: list[str]) -> None:
    """Print the files that a run passes through."""
    for number, file in enumerate(trace(overrides).files(), start=1):
        print(f"{number:3} {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
