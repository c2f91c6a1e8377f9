"""The whole suite on one GPU: build, check, test, sanitize, benchmark, and a table of what the kernels have to show.

    scripts/gpu_suite --out OUT --minutes 4 --only first     # build, smoke, ceilings, decode, append, scoring
    scripts/gpu_suite --out OUT --minutes 4 --resume         # what is missing: whole steps, profile, checks, rivals
    scripts/gpu_suite --out OUT --minutes 4 --only tuning    # open choices of the decode kernel: which to turn on

Each step is a process of its own with a time limit of its own; what it finds is appended to gpu_suite.jsonl at once,
so that whatever ends the suite early loses nothing. At the end there are three files: gpu_suite.json has all records,
gpu_suite.log the steps' output, gpu_suite.tar.gz the rest. Where there is no git, KVBENCH_COMMIT names the commit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import suite_targets
import suite_wheels
from suite_process import Processes
from suite_results import Results
from suite_steps import ROOT, Step, steps

_NEEDED = ("numpy", "transformers", "filelock", "tabulate", "tqdm", "yaml", "psutil", "hydra", "omegaconf", "pytest")
_ASKED = """
import json, platform, torch
gpu = torch.cuda.is_available()
name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
print(json.dumps({"torch": torch.__version__, "gpu": gpu, "name": name}))
"""
_LEAST = 5  # seconds with which a step begins
_SHOWN, _SHOWN_OF_BUILD = 15, 25  # lines of a failed step's output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; returns 0 if all steps went well, 1 if not, 2 if nothing can run, 130 if interrupted."""
    arguments = _arguments(argv)
    try:
        if arguments.prepare:
            suite_wheels.prepare(arguments.prepare)
            return 0
        if arguments.table:
            print(suite_targets.table(suite_targets.lines(_records(arguments.table))))
            return 0
        signal.signal(signal.SIGTERM, _terminated)
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"gpu_suite: {error}", file=sys.stderr)
        return 2


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prepare", type=Path, metavar="DIR", help="fetch the wheels a machine may lack; no GPU needed"
    )
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install from there what is missing, for this run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (default: outputs/gpu_suite/<date>)")
    parser.add_argument("--minutes", type=float, default=9, help="time for everything (default: 9)")
    parser.add_argument("--only", metavar="STEP,...", help="these steps alone; first, second and tuning are groups")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FILE.json",
        help="keep the results of the same commit and device, of --out or of a file, and run what is missing",
    )
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the table of a result, and end")
    parser.add_argument("--dry-run", action="store_true", help="go through it on the CPU at toy sizes: no figures")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> int:
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.resume is True and arguments.out is None:
        raise ValueError("--resume: say which results, by --out DIR or --resume FILE.json")
    out = (arguments.out or ROOT / "outputs/gpu_suite" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")).absolute()
    if arguments.dry_run and (ROOT / "perf/results") in (out, *out.parents):
        raise ValueError(f"--out {out}: a dry run's figures mean nothing; not among the results")
    chosen = _chosen(steps(out, out / "gpu_suite.jsonl", arguments.dry_run), arguments.only)
    source = None if arguments.resume in (None, True) else Path(arguments.resume)
    if source is not None and not source.is_file():
        raise ValueError(f"--resume {source}: no such file")
    device = _device(arguments.dry_run)
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out)
    if arguments.resume:
        print(results.resume(source, device, arguments.dry_run), flush=True)
        chosen = [step for step in chosen if step.name == "build" or not results.has(step.name)]
    else:
        results.clear()
    with tempfile.TemporaryDirectory() as site:
        env = dict(os.environ)
        if arguments.wheels:
            names = suite_wheels.install(arguments.wheels.absolute(), Path(site))
            print(f"installed for this run: {', '.join(names) or 'nothing, all is there'}", flush=True)
        paths = [str(ROOT), str(ROOT / "kernels"), site, env.get("PYTHONPATH", "")]
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        if arguments.dry_run:  # steps side by side: threads that wait for each other would be in the way
            env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | env
        suite = Suite(results, env, end)
        suite.say_lacks(site)
        good = suite.run(chosen, at_once=arguments.dry_run)
    return 0 if good else 1


def _device(dry_run: bool) -> str:
    """Return the name of the device. Raises ValueError if it has to be a GPU and torch finds none."""
    done = subprocess.run([sys.executable, "-c", _ASKED], capture_output=True, text=True)
    if done.returncode:
        matches = "this Python has no torch"
    else:
        answer = json.loads(done.stdout)
        if dry_run or answer["gpu"]:
            return str(answer["name"])
        matches = f"torch {answer['torch']} finds none here"
    raise ValueError(f"needs an NVIDIA GPU and a torch built for it; {matches}. --dry-run goes through it on the CPU")


def _records(file: Path) -> list[dict[str, Any]]:
    """Return the records of a result. Raises ValueError if the file is none."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return [record | {"about": result["about"]} for record in result["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--table {file}: not a gpu_suite.json ({error})") from error


def _chosen(all_steps: Sequence[Step], only: str | None) -> list[Step]:
    names = [step.name for step in all_steps]
    groups = sorted({step.group for step in all_steps})
    wanted = names if only is None else only.split(",")
    if unknown := [name for name in wanted if name not in (*names, *groups)]:
        raise ValueError(f"--only {','.join(unknown)}: no such step, choose of {', '.join([*groups, *names])}")
    return [step for step in all_steps if step.name in wanted or step.group in wanted]


class Suite:
    """Runs steps, one after the other or some at once, and prints the table."""

    def __init__(self, results: Results, env: dict[str, str], end: float) -> None:
        self._results, self._env, self._end = results, env, end
        self._processes = Processes()

    def say_lacks(self, site: str) -> None:
        sys.path.append(site)
        importlib.invalidate_caches()
        lacks = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        sys.path.remove(site)
        if lacks:
            print(f"this Python lacks {', '.join(lacks)}: some steps will fail; see --prepare and --wheels", flush=True)

    def run(self, chosen: Sequence[Step], at_once: bool) -> bool:
        """Run all steps and print the table; returns True if all that could run went well."""
        crews = [list(same) for _, same in groupby(chosen, key=lambda step: step.crew or step.name)]
        if at_once:  # nothing is timed: as many as there are processors
            crews = [list(chosen)]
        good = True
        try:
            for index, crew in enumerate(crews):
                rest = sum(max(step.share for step in later) for later in crews[index + 1 :])
                share = max((step.share for step in crew), default=0)
                limit = max(0.0, min(max(share, self._left() - rest), self._left()))
                statuses = self._together(crew, limit, (os.cpu_count() or 1) if at_once else len(crew))
                good = good and all(status in ("ok", "missing") for status in statuses)
                if crew and crew[0].name == "build" and statuses[0] not in ("ok", "missing"):
                    print("nothing else runs: the kernels do not compile", flush=True)
                    break
        finally:
            shown = self._results.finish(shlex.join(sys.argv))
        print("\n" + suite_targets.table(shown))
        print(f"\n{self._results.summary}")
        return good

    def _together(self, crew: Sequence[Step], limit: float, workers: int) -> list[str]:
        """Run steps at the same time; returns their statuses."""
        if limit >= _LEAST:  # now, since running steps append to the records
            self._results.forget([step.name for step in crew if step.command is not None])
        with ThreadPoolExecutor(max(1, workers)) as pool:
            try:
                return list(pool.map(lambda step: self._step(step, limit), crew))
            except BaseException:  # interrupted: steps have process groups of their own
                self._processes.stop()
                raise
            finally:
                self._results.summarize(shlex.join(sys.argv))

    def _left(self) -> float:
        return self._end - time.monotonic() - 3  # to write what is known

    def _step(self, step: Step, limit: float) -> str:
        if step.command is None:
            return self._tell(step, "missing", 0, {"lacks": step.lacks})
        if limit < _LEAST or self._processes.stopped:
            return self._tell(step, "skipped", 0, {"lacks": "no time left"})
        # a benchmark is told when to end, before it is cut off in the middle
        command = [word.replace("{seconds}", f"{max(1.0, limit - 8):.0f}") for word in step.command]
        begun = time.monotonic()
        code, output = self._processes.run(command, self._env | step.env, limit)
        seconds = time.monotonic() - begun
        self._results.log(f"\n===== {step.name}: {shlex.join(command)}\n{output}")
        read = step.read(output)
        status = "timeout" if code is None else "ok" if step.good(code, read) else "failed"
        if step.name.startswith("profile"):
            self._results.take_profile()
        about = {"command": shlex.join(command), "exit": code, **read}
        if status != "ok":
            about["output"] = output[-2000:]
        return self._tell(step, status, seconds, about)

    def _tell(self, step: Step, status: str, seconds: float, about: dict[str, Any]) -> str:
        self._results.append({"step": step.name, "status": status, "seconds": round(seconds, 1), **about})
        text = f"{step.name:10} {status:8} {seconds:6.1f} s  {about.get('lacks', '')}".rstrip()
        if status in ("failed", "timeout"):
            most = _SHOWN_OF_BUILD if step.name == "build" else _SHOWN
            text += "".join(f"\n    {line[:200]}" for line in about["output"].strip().splitlines()[-most:])
        print(text, flush=True)
        return status


def _terminated(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: `timeout` sends it twice
    raise KeyboardInterrupt
