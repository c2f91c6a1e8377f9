"""A process that has imported large libraries, and forks itself for each Python command that it is asked for.

    python fork_server.py FOLDER MODULE ...

It imports the modules, says so on stdout, and listens to FOLDER/socket. When its stdin ends, it removes the folder and
ends. A request is a line of JSON with the words after `python`, the folder, the variables and the limits of a command,
and comes with its stdin, stdout and stderr. The answers are two lines: the process id at once, and the exit status, as
subprocess has it, at the end. If the one who asked goes away before that, the command is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
from typing import Any

_PATH = "PYTHONPATH"


def main(folder: str, *modules: str) -> None:
    """Import the modules and serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started this process
    del sys.path[0]  # the folder of this file
    for module in modules:
        importlib.import_module(module)
    assert threading.active_count() == 1 and _tasks() == 1, "a fork has one thread, whatever the others hold"
    gc.freeze()  # what was imported stays: no command looks for garbage in it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/socket")
        listening.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([sys.stdin, listening], [], [])
            if sys.stdin in ready:
                shutil.rmtree(folder)
                return
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                try:
                    _keep(asked)
                except BaseException:
                    traceback.print_exc()
                os._exit(0)
            asked.close()


def _tasks() -> int:
    """Return the number of the process's threads as the system sees them: those of C++ as well."""
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1


def _keep(asked: socket.socket) -> None:
    """Run the command in a fork, and answer; kill it if nobody listens any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, _, _ = socket.recv_fds(asked, 1 << 16, 3)
    while not request.endswith(b"\n"):
        more = asked.recv(1 << 16)
        if not more:
            return
        request += more
    child = os.fork()
    if child == 0:
        asked.close()
        _run(json.loads(request), files)
    for file in files:  # who reads them waits until the last one that has them open is gone
        os.close(file)
    for name in (0, 1, 2):
        os.close(name)
    ended = threading.Event()
    threading.Thread(target=_kill_if_left, args=(asked, child, ended), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        asked.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    ended.set()
    with contextlib.suppress(BrokenPipeError):
        asked.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _kill_if_left(asked: socket.socket, child: int, ended: threading.Event) -> None:
    asked.recv(1)  # nothing comes but the end
    if not ended.is_set():
        os.kill(child, signal.SIGKILL)


def _run(job: dict[str, Any], files: list[int]) -> None:
    """Run the command in this process, and end it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    _open_streams()
    ours = os.environ.get(_PATH, "").split(os.pathsep)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    theirs = list(filter(None, os.environ.get(_PATH, "").split(os.pathsep)))
    sys.path[:] = ["", *theirs, *(path for path in sys.path if path not in ours)]
    for name, limit in job["limits"].items():
        resource.setrlimit(int(name), tuple(limit))
    code = 0
    try:
        _python(job["words"])
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _open_streams() -> None:
    """Open stdin, stdout and stderr as Python does when it starts: those from before know other files."""
    for number, name, mode, errors in (
        (0, "stdin", "r", "strict"),
        (1, "stdout", "w", "strict"),
        (2, "stderr", "w", "backslashreplace"),
    ):
        buffering = 1 if name == "stderr" or os.isatty(number) else -1
        stream = open(number, mode, buffering, errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream), setattr(sys, f"__{name}__", stream)


def _python(words: list[str]) -> None:
    """Do as `python WORDS` does: -m MODULE, -c CODE or a file, with arguments."""
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
