"""The C functions of a compiled library, bound by ctypes. Their arguments are listed in `calls`."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from kvbench_kernels.calls import COUNTS, SIGNATURES, SIZES, filled

# What the C functions return besides 0 and a cudaError: the codes in csrc/common.h.
_CODES = {
    -1: "not compiled for this dtype, head dimension or option",
    -2: "a size is 0 or too large: too many rows, heads, segments or tokens for one launch",
}
_TYPES = {"l": ctypes.c_int64, "i": ctypes.c_int, "p": ctypes.c_void_p}
# Errors that a user can do something about. Other errors are reported by number.
_CUDA_ERRORS = {
    2: "out of memory",
    35: "the driver is older than the CUDA toolkit that compiled the kernels",
    98: "invalid device function: the kernels were compiled for another GPU; build again for its architecture",
    100: "no CUDA device",
    209: "not compiled for this GPU; build again for its architecture",
    218: "the driver cannot compile the kernels' PTX; build again for this GPU's architecture",
    222: "the driver is older than the compiler of the kernels' PTX; build again for this GPU's architecture",
    700: "illegal memory access",
    701: "too many resources requested for launch",
}


class Library:
    """The functions of one library. `call` returns when the work is queued (CUDA) or finished (on a CPU).

    Raises:
        RuntimeError: the library cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        opened = open_shared(path)
        self._functions: dict[str, Any] = {}
        types: dict[str, list[Any]] = {
            name: [ctypes.POINTER(struct), ctypes.c_void_p] for name, struct in SIGNATURES.items()
        }
        types |= {name: [_TYPES[letter] for letter in letters] for name, letters in (SIZES | COUNTS).items()}
        for name, of_arguments in types.items():
            function = getattr(opened, f"kvb_{name}", None)
            if function is None:
                continue
            function.restype = ctypes.c_int64 if name in SIZES else ctypes.c_int
            function.argtypes = of_arguments
            self._functions[name] = function

    def call(self, op: str, stream: int | None, **arguments: Any) -> None:
        """Call kvb_<op> with the fields of its struct.

        Args:
            stream: the CUDA stream; None on the host.

        Raises:
            RuntimeError: it returns an error, or the library has no such function.
            TypeError: a field is missing or has another name.
        """
        code = self._function(op)(filled(SIGNATURES[op], arguments), stream)
        if code in _CODES:
            raise RuntimeError(f"kvb::{op}: {_CODES[code]}")
        if code != 0:
            raise RuntimeError(f"kvb::{op}: CUDA error {code} ({_CUDA_ERRORS.get(code, 'see cudaError_t')})")

    def size(self, name: str, *arguments: int) -> int:
        """Call kvb_<name>, which returns the bytes of workspace that an op needs, or the number of blocks to launch."""
        size: int = self._function(name)(*arguments)
        return size

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            raise RuntimeError(f"{self.path}: has no function kvb_{name}")
        return self._functions[name]


def open_shared(path: Path) -> ctypes.CDLL:
    """Load a shared library.

    Raises:
        RuntimeError: it cannot be loaded, for instance because its file system forbids execution. One line says why.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
        raise RuntimeError(f"{path}: cannot be loaded: {reason}") from error


@cache
def load(path: Path) -> Library:
    """Load a library from `build.host`, `build.cpu` or `build.cuda`; the same object for the same path.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    return Library(path)
