"""The frame of every command: one exit-code policy, one-line messages, and streams that cannot end it.

    0        all went well
    1        the command did its work and reports a failure elsewhere: `Unfinished`, or the status a command returns
    2        a mistake of the user: one line on stderr, "kvbench: <setting>=<value>: <what to change>"
    130      Ctrl-C
    128 + n  ended by signal n; 141 when the reader of the output went away

`HYDRA_FULL_ERROR=1` shows the traceback of a mistake.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, ParamSpec

from kvbench.common.text import as_typed, one_line

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # read early: the run command sets it for Hydra
_LIBRARY_ERRORS = {("yaml", "YAMLError"), ("omegaconf", "OmegaConfBaseException"), ("hydra", "HydraException")}

Arguments = ParamSpec("Arguments")


class Unfinished(Exception):
    """Runs that were computed elsewhere did not end well. The message says which, and is for the user."""


def log_messages(line: str = "%(message)s", force: bool = False) -> None:
    """Show our own messages as plain lines, and of libraries only warnings. `force` replaces earlier settings."""
    logging.basicConfig(level=logging.WARNING, format=line, force=force)
    for ours in ("kvbench", "kvbench_kernels"):
        logging.getLogger(ours).setLevel(logging.INFO)


class Parser(argparse.ArgumentParser):
    """An argument parser that prints its texts as they are written, and whose complaint is a ValueError of one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the complaint. Raises ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")


def command(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Wrap a command's `main(argv) -> exit code` so that it follows the policy above.

    `main` raises ValueError for a mistake of the user; it never prints an error itself.
    """

    @functools.wraps(main)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        secure_streams()
        try:
            status = main(*args, **kwargs)
            _flush()
            return status
        except BrokenPipeError:
            if not _reader_is_gone():
                raise
            _silence(*filter(_is_broken, (1, 2)))
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt as error:
            say(str(error) or "interrupted")
            return 128 + signal.SIGINT
        except Unfinished as error:
            say(str(error))
            return 1
        except Exception as error:
            if WANTS_TRACEBACK or not is_mistake(error):
                raise
            say(message_of(error))
            return 2

    return wrapped


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Let Ctrl-C say that the same command goes on with the work inside. Raises KeyboardInterrupt with that message."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; issue the same command again to resume") from None


def is_mistake(error: BaseException) -> bool:
    """Return True if the user can mend the cause: a value, a file, or the text of a configuration.

    Exceptions of libraries are known by name, because importing these libraries takes longer than `--help` may.
    """
    if isinstance(error, BrokenPipeError):  # nothing is wrong: the reader has seen enough
        return False
    names = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    return isinstance(error, ValueError | OSError) or bool(names & _LIBRARY_ERRORS)


def message_of(error: BaseException) -> str:
    """Return the message of a mistake; that of an OSError begins with the file, if Python knows it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__


def say(text: str) -> None:
    """Print one line for the user on stderr; nothing happens when stderr is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"kvbench: {as_typed(one_line(text))}", file=sys.stderr, flush=True)


def secure_streams() -> None:
    """Make stdout and stderr safe to write to.

    A character that the terminal cannot show becomes a backslash escape. A closed stream becomes the null device:
    otherwise the next file that is opened would take its place, and receive what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write out what is still buffered. Raises BrokenPipeError, or OSError naming the standard output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(1)
        raise OSError(error.errno, error.strerror, "standard output") from None


def _reader_is_gone() -> bool:
    """Return True if stdout or stderr is a pipe that nobody reads any more."""
    return any(map(_is_broken, (1, 2)))


def _is_broken(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _silence(*descriptors: int) -> None:
    """Send streams to the null device, or Python would report the same trouble again when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)
