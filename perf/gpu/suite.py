"""The whole suite on one GPU: build, check, test, sanitize, benchmark, and a table of what the kernels have to show.

Each step is a process of its own with a time limit of its own; what it finds is appended to gpu_suite.jsonl at once,
so that whatever ends the suite early loses nothing. Where there is no git, KVBENCH_COMMIT names the commit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import suite_targets
import suite_wheels
from suite_steps import ROOT, Step, steps

_FULL = 540  # seconds that the steps' shares add up to
_NEEDED = ("numpy", "transformers", "filelock", "tabulate", "tqdm", "yaml", "psutil", "hydra", "omegaconf", "pytest")
_ASKED = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
_writing = threading.Lock()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; returns 0 if all steps went well, 1 if not, 2 if nothing can run, 130 if interrupted."""
    arguments = _arguments(argv)
    try:
        if arguments.prepare:
            suite_wheels.prepare(arguments.prepare)
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
    parser.add_argument("--only", metavar="STEP,...", help="these steps alone, by name")
    parser.add_argument("--dry-run", action="store_true", help="go through it on the CPU at toy sizes: no figures")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> int:
    end = time.monotonic() + 60 * arguments.minutes
    out = (arguments.out or ROOT / "outputs/gpu_suite" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")).absolute()
    if arguments.dry_run and (ROOT / "perf/results") in (out, *out.parents):
        raise ValueError(f"--out {out}: a dry run's figures mean nothing; not among the results")
    if not arguments.dry_run:
        _need_gpu()
    out.mkdir(parents=True, exist_ok=True)
    chosen = _chosen(steps(out, out / "gpu_suite.jsonl", arguments.dry_run), arguments.only)
    with tempfile.TemporaryDirectory() as site:
        env = dict(os.environ)
        if arguments.wheels:
            names = suite_wheels.install(arguments.wheels.absolute(), Path(site))
            print(f"installed for this run: {', '.join(names) or 'nothing, all is there'}", flush=True)
        paths = [str(ROOT), str(ROOT / "kernels"), site, env.get("PYTHONPATH", "")]
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        if arguments.dry_run:  # steps side by side: threads that wait for each other would be in the way
            env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | env
        suite = Suite(out, env, end, arguments.minutes * 60 / _FULL)
        suite.say_lacks(site)
        good = suite.run(chosen, at_once=arguments.dry_run)
    return 0 if good else 1


def _need_gpu() -> None:
    """Check that torch finds a GPU. Raises ValueError."""
    done = subprocess.run([sys.executable, "-c", _ASKED], capture_output=True, text=True)
    printed = done.stdout.split()
    if done.returncode:
        matches = "this Python has no torch"
    elif printed[-1] != "True":
        matches = f"torch {printed[0]} finds none here"
    else:
        return
    raise ValueError(f"needs an NVIDIA GPU and a torch built for it; {matches}. --dry-run goes through it on the CPU")


def _chosen(all_steps: Sequence[Step], only: str | None) -> list[Step]:
    names = [step.name for step in all_steps]
    wanted = names if only is None else only.split(",")
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"--only {','.join(unknown)}: no such step, choose of {', '.join(names)}")
    return [step for step in all_steps if step.name in wanted]


class Suite:
    """Runs steps and keeps their records: gpu_suite.jsonl as they come, gpu_suite.json, and the steps' output."""

    def __init__(self, out: Path, env: dict[str, str], end: float, scale: float) -> None:
        self._out, self._env, self._end, self._scale = out, env, end, scale
        self._records, self._log = out / "gpu_suite.jsonl", out / "gpu_suite.log"
        self._processes: set[subprocess.Popen[Any]] = set()
        self._stopped = False
        self._records.unlink(missing_ok=True)
        self._log.write_text("")

    def say_lacks(self, site: str) -> None:
        sys.path.append(site)
        importlib.invalidate_caches()
        lacks = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        sys.path.remove(site)
        if lacks:
            print(f"this Python lacks {', '.join(lacks)}: some steps will fail; see --prepare and --wheels", flush=True)

    def run(self, chosen: Sequence[Step], at_once: bool) -> bool:
        """Run all steps and print the table; returns True if all that could run went well."""
        groups = [list(same) for _, same in groupby(chosen, key=lambda s: s.name if not s.parallel else "")]
        if at_once:  # nothing is timed: as many as there are processors
            groups = [list(chosen)]
        good = True
        for index, group in enumerate(groups):
            rest = sum(max(step.share for step in later) for later in groups[index + 1 :]) * self._scale
            share = max(step.share for step in group) * self._scale
            limit = max(0.0, min(max(share, self._left() - rest), self._left()))
            workers = (os.cpu_count() or 1) if at_once else len(group)
            with ThreadPoolExecutor(workers) as pool:
                try:
                    statuses = list(pool.map(lambda step, limit=limit: self._step(step, limit), group))
                except BaseException:  # interrupted: steps have process groups of their own
                    self._stop()
                    raise
                finally:
                    self._summarize()
            good = good and all(status in ("ok", "missing") for status in statuses)
        records = self._read()
        print(f"\n{suite_targets.table(suite_targets.lines(records))}\n{self._out}/gpu_suite.json")
        return good

    def _left(self) -> float:
        return self._end - time.monotonic() - 3  # to write what is known

    def _step(self, step: Step, limit: float) -> str:
        if step.command is None:
            return self._tell(step, "missing", 0, {"lacks": step.lacks})
        if limit < 5 or self._stopped:
            return self._tell(step, "skipped", 0, {"lacks": "no time left"})
        # a benchmark is told when to end, before it is cut off in the middle
        command = [word.replace("{seconds}", f"{max(1.0, limit - 8):.0f}") for word in step.command]
        begun = time.monotonic()
        code, output = self._process(command, self._env | step.env, limit)
        seconds = time.monotonic() - begun
        with _writing, self._log.open("a") as log:
            log.write(f"\n===== {step.name}: {shlex.join(command)}\n{output}")
        read = step.read(output)
        status = "timeout" if code is None else "ok" if step.good(code, read) else "failed"
        if step.name.startswith("profile"):
            self._take_profile()
        about = {"command": self._shown(shlex.join(command)), "exit": code, **read}
        if status != "ok":
            about["output"] = self._shown(output[-2000:])
        return self._tell(step, status, seconds, about)

    def _process(self, command: Sequence[str], env: dict[str, str], limit: float) -> tuple[int | None, str]:
        """Exit status (None: it took too long) and output."""
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            self._processes.add(process)
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                _kill(process)
            self._processes.discard(process)
            output.seek(0)
            return code, output.read()

    def _stop(self) -> None:
        self._stopped = True
        for process in list(self._processes):
            _kill(process)

    def _shown(self, text: str) -> str:
        """Return a text without this machine's folders, as if it was written from the checkout."""
        return text.replace(sys.executable, "python").replace(str(self._out), "OUT").replace(f"{ROOT}/", "")

    def _tell(self, step: Step, status: str, seconds: float, about: dict[str, Any]) -> str:
        self._append({"step": step.name, "status": status, "seconds": round(seconds, 1), **about})
        printed = about.get("lacks") or (about.get("output", "").strip().splitlines() or [""])[-1][:150]
        print(f"{step.name:10} {status:8} {seconds:6.1f} s  {printed}", flush=True)
        return status

    def _append(self, record: dict[str, Any]) -> None:
        with _writing, self._records.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _take_profile(self) -> None:
        """Return the cells that a profile has written, as records."""
        known = {r["id"] for r in self._read() if r.get("bench") == "profile"}
        for file in sorted(self._out.glob("profile/*/cells.jsonl")):
            for line in file.read_text().splitlines():
                cell = _loaded(line)
                if cell and cell["id"] not in known:
                    self._append({"bench": "profile", **cell})

    def _read(self) -> list[dict[str, Any]]:
        if not self._records.is_file():
            return []
        return [record for record in map(_loaded, self._records.read_text().splitlines()) if record]

    def _summarize(self) -> None:
        """Write gpu_suite.json as a whole: all records, what they share once, and the table."""
        records = self._read()
        shared: dict[str, Any] = next((record["about"] for record in records if "about" in record), {})
        lines = [vars(line) for line in suite_targets.lines(records)]
        plain = [{key: value for key, value in record.items() if key != "about"} for record in records]
        result = {"about": shared | {"command": self._shown(shlex.join(sys.argv))}, "shows": lines, "records": plain}
        new = self._out / "gpu_suite.json.new"
        new.write_text(json.dumps(result, indent=1) + "\n")
        new.replace(self._out / "gpu_suite.json")


def _kill(process: subprocess.Popen[Any]) -> None:
    """End a step and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _terminated(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: `timeout` sends it twice
    raise KeyboardInterrupt


def _loaded(line: str) -> dict[str, Any] | None:
    """Return a line's record; None for a line that was cut off."""
    try:
        result: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return result
