"""Cache of compiled libraries: a folder for each recipe, whose name contains the recipe's key.

A library is compiled in a temporary folder and renamed. It is loaded only if its size and hash are those of its report:
loading a truncated library would end the process (SIGBUS). A damaged one is compiled again.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kvbench_kernels.build import failures, sources
from kvbench_kernels.build.compilation import LIBRARY, REPORT, compile_into, file_hash, read_report
from kvbench_kernels.build.compilers import CompilerError
from kvbench_kernels.build.recipes import Recipe

log = logging.getLogger(__name__)

_PATIENCE = 900.0  # seconds to wait for another process, which may have been stopped
_failed: dict[Path, CompilerError] = {}  # of this process: what does not compile now will not compile later


def cache_dir() -> Path:
    """Return the folder of the cache: `kernels` in the environment variable KVBENCH_CACHE, else in ~/.cache/kvbench."""
    root = os.environ.get("KVBENCH_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "kvbench").expanduser().absolute() / "kernels"


def folder_of(recipe: Recipe) -> Path:
    """Return the folder of a recipe's library, whether or not it exists. Raises CompilerError as `Recipe.key`."""
    return cache_dir() / f"{recipe.kind}-{recipe.key()}"


def intact(folder: Path) -> Path | None:
    """Return the library in a folder of the cache; None if it is missing, or not as it was when it was compiled."""
    about = read_report(folder)
    library = folder / LIBRARY
    try:
        if about is None or not library.is_file() or library.stat().st_size != about["bytes"]:
            return None
        return library if file_hash(library) == about["sha256"] else None
    except OSError:
        return None


def built_elsewhere(kind: str, archs: Sequence[str]) -> Path | None:
    """Return a library of these sources for these processors, no matter which compiler or machine has made it."""
    wanted = (sources.digest(kind), list(archs), platform.machine())
    for folder in sorted(path.parent for path in cache_dir().glob(f"{kind}-*/{REPORT}")):
        about = read_report(folder)
        if about is not None and (about["sources"], about["archs"], about["machine"]) == wanted:
            library = intact(folder)
            if library is not None:
                return library
    return None


def built(
    recipe: Recipe, force: bool = False, progress: Callable[[str], None] | None = None, retry: bool = False
) -> Path:
    """Return the library of a recipe, compiled now if the cache has no intact one or with `force`.

    A library that did not compile is not tried again, at later starts neither, unless with `force` or `retry`.

    Raises:
        ValueError: the cache cannot be written.
        CompilerError: the library does not compile, or did not compile before.
    """
    folder = folder_of(recipe)
    if not force and (library := intact(folder)) is not None:
        return library
    known = None if force or retry else _failed.get(folder)
    if known is not None:
        raise known
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not (force or retry):
                known = failures.recalled(folder)
            if known is None and (force or intact(folder) is None):  # another process may have compiled it meanwhile
                _compile(recipe, folder, progress)
                failures.forget(folder)
    except CompilerError as error:
        _failed[folder] = error.with_output_in(folder.with_suffix(".log"))
        failures.remember(folder, _failed[folder])
        raise _failed[folder] from None
    except OSError as error:
        raise ValueError(
            f"KVBENCH_CACHE={folder.parent.parent}: cannot be written ({error.strerror or error})"
        ) from error
    if known is not None:
        _failed[folder] = known
        raise known
    return folder / LIBRARY


def _compile(recipe: Recipe, folder: Path, progress: Callable[[str], None] | None) -> None:
    """Compile in a temporary folder and rename it: a library is there as a whole or not at all."""
    begin = time.monotonic()
    if os.path.lexists(folder) and intact(folder) is None:
        log.warning("%s is damaged; it is compiled again", folder)
    log.info("compiling the %s kernels, once: they are kept in %s", recipe.kind, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-", ignore_cleanup_errors=True) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        compile_into(new, Path(scratch), recipe, progress)
        if os.path.lexists(folder):  # a process that has loaded the old library keeps it
            shutil.move(folder, Path(scratch) / "old")
        os.rename(new, folder)
    log.info("compiled the %s kernels in %.0f s", recipe.kind, time.monotonic() - begin)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process compile while the others wait. A process that has waited too long goes on: a rename is safe."""
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except NotImplementedError:  # a file system without locks
        log.debug("%s cannot be locked", folder)
    except Timeout:
        log.warning("waiting for another process that compiles the kernels")
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            log.warning("the other process did not finish in %.0f minutes; compiling here as well", _PATIENCE / 60)
    try:
        yield
    finally:
        lock.release()
