"""Python commands in processes of their own, forked from one that has imported the large libraries.

What a command imports of other projects takes seconds, and is the same for all commands. Our own modules are imported
by each command, after its environment is set. A variable that another project reads when it is imported has the value
of the first test that asks, as have the hash seed and the number of threads, which is one. So what depends on them
belongs into a process that is started, and so does one command of each kind: a fork hides an import that is missing.
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

LIBRARIES = (
    "hydra.core.override_parser.overrides_parser",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "matplotlib.figure",
    "numpy",
    "omegaconf",
    "rouge_score.rouge_scorer",
    "torch",
    "torch._dynamo",
    "transformers.convert_slow_tokenizer",
    "transformers.models.llama.modeling_llama",
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # a fork would lack the others of a pool

# It starts in a hundredth of the time of the libraries. What ends it ends the command, and the other way round.
_EXECUTABLE = """#!/bin/sh
'''exec' {python} -IS "$0" "$@"
' '''
import json, os, resource, signal, socket, sys
limits = dict((number, resource.getrlimit(number)) for number in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE))
job = dict(words=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ), limits=limits)
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
socket.send_fds(asked, [json.dumps(job).encode() + b"\\n"], [0, 1, 2])
answers = asked.makefile()
child = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.kill(child, number))
code = int(answers.readline())
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def run(args: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `kvbench` with these arguments to its end. The test's own timeout is the only one."""
    words = ["-m", "kvbench", *args]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
        job = {"words": words, "cwd": str(cwd), "env": dict(env), "limits": {}}
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(_server().parent / "socket"))
            socket.send_fds(asked, [json.dumps(job).encode() + b"\n"], [nothing.fileno(), out.fileno(), err.fileno()])
            _, code = asked.makefile()
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(words, int(code), out.read(), err.read())


def python() -> str:
    """Return a path to use in place of `sys.executable`: the same process, but for what is said above.

    It may be given options of subprocess, limits, signals; stdin, stdout and stderr are its only open files.
    """
    return str(_server())


@cache
def _server() -> Path:
    """Start the process that forks, once for each process of the tests."""
    return serve(LIBRARIES, os.environ)


def serve(libraries: Sequence[str], env: Mapping[str, str]) -> Path:
    """Start a process that imports `libraries` and forks; return its executable."""
    folder = Path(tempfile.mkdtemp(prefix="kvbench-"))
    executable = folder / "python"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(folder), *libraries],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**env, **dict.fromkeys(_THREADS, "1")},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    atexit.register(process.stdin.close)  # it ends when nobody asks any more
    executable.write_text(_EXECUTABLE.format(python=shlex.quote(sys.executable), address=f"{folder}/socket"))
    executable.chmod(0o755)
    return executable
