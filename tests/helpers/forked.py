"""The command line in processes of their own, forked from one that has imported the large libraries.

What a command imports of other projects takes seconds, and is the same for all commands. Our own modules are imported
by each command, after its environment is set.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

_SERVER = """
import atexit, json, os, runpy, sys, threading, traceback
import hydra, matplotlib.figure, numpy, omegaconf, pyarrow, torch, torch._dynamo
import transformers.models.llama.modeling_llama

def serve(job):
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for number, name in enumerate([os.devnull, job["out"], job["err"]]):
        os.dup2(os.open(name, os.O_WRONLY if number else os.O_RDONLY), number)
    sys.argv, sys.path[0], code = ["kvbench", *job["args"]], "", 0
    try:
        runpy.run_module("kvbench", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        serve(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run(args: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `kvbench` with these arguments to its end. The test's own timeout is the only one."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        out.touch(), err.touch()
        job = {"args": list(args), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        requests, answers = _server()
        print(json.dumps(job), file=requests, flush=True)
        code = int(answers.readline())
        return subprocess.CompletedProcess(["kvbench", *args], code, out.read_text(), err.read_text())


@cache
def _server() -> tuple[IO[str], IO[str]]:
    """Start the process that forks, once for each process of the tests."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdin is not None and process.stdout is not None
    atexit.register(process.stdin.close)  # it ends when nobody asks any more
    return process.stdin, process.stdout
