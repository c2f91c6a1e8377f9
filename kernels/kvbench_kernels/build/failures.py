"""Memory of failed compilations: a file next to the folder that the library would be in.

What does not compile today will not compile at the next start, and trying costs up to a minute. The folder's name has
a hash of sources, compiler and settings, so a change of any of them is a new try. The file also has the version of g++,
which nvcc uses.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from kvbench_kernels.build import compilers
from kvbench_kernels.build.compilers import CompilerError

# Reasons that may be gone at the next start.
_PASSING = re.compile(r"does not start|No space left|[Kk]illed|out of memory|annot allocate memory|Disk quota")


def recalled(folder: Path) -> CompilerError | None:
    """Return the error of an earlier start that could not compile this library; None if none is known."""
    try:
        about = json.loads(_file(folder).read_text())
        if about["g++"] == _gxx():
            command = "kvbench kernels build" + (" --cpu" if folder.name.startswith("cpu-") else "")
            return CompilerError(f"{about['message']}; this was at an earlier start, `{command}` tries again")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # no such file, or it is damaged
    return None


def remember(folder: Path, error: CompilerError) -> None:
    """Write down why a library does not compile, unless the reason may be gone soon or the cache cannot be written."""
    if _PASSING.search(f"{error}\n{error.output}"):
        return
    with suppress(OSError):
        _file(folder).write_text(json.dumps({"message": str(error), "g++": _gxx()}))


def forget(folder: Path) -> None:
    """Delete what is known about failed compilations of a library that now exists."""
    for file in (_file(folder), folder.with_suffix(".log")):
        file.unlink(missing_ok=True)


def _file(folder: Path) -> Path:
    return folder.with_suffix(".failed")


def _gxx() -> str:
    try:
        return compilers.version(compilers.gxx())
    except (ValueError, CompilerError):
        return "none"
