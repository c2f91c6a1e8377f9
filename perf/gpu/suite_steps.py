"""The suite's steps: what each runs, how long it may take, and how its output is read. Needs the standard library only.

The first group gives the figures of the kernels, the second those of whole models, and the checks that take long. The
third, tuning, times the open choices of the decode kernel.
Within a group the most telling comes first: a step gets its share of the time as long as there is any. Neighbours of
the same `crew` run at the same time: they check, and time nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
_KEEP_CUPTI = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}  # profiles before and after a graph is recorded
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FOUND = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:error|hazard)")


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        share: seconds it may take; what earlier steps leave over is added.
        command: the program and its arguments; None if a tool is missing.
        read: reads further fields of the record from the step's output.
        good: whether it went well, from the exit status and `read`'s answer.
        group: "first", "second" or "tuning": which of the calls runs it.
    """

    name: str
    share: float
    command: Sequence[str] | None
    crew: str = ""
    env: dict[str, str] = field(default_factory=dict)
    read: Callable[[str], dict[str, Any]] = lambda _: {}
    good: Callable[[int, dict[str, Any]], bool] = lambda code, _: code == 0
    lacks: str = ""
    group: str = "second"


def steps(out: Path, records: Path, toy: bool) -> list[Step]:
    """Return all steps, in order. Benchmarks append to `records`; {seconds} in a command is the time it has."""

    def bench(name: str, *more: str) -> list[str]:
        common = ["--out", str(records), "--seconds", "{seconds}", *(["--toy"] if toy else [])]
        return [sys.executable, str(HERE / f"{name}.py"), *more, *common]

    first = [
        Step("build", 60, bench("compiled")),
        Step("smoke", 20, _smoke(toy), read=_ran),
        Step("ceilings", 15, bench("ceilings")),
        Step("decode", 80, bench("decode")),
        Step("append", 20, bench("append")),
        Step("scoring", 35, bench("scoring")),
    ]
    workers = _workers()
    second = [
        Step("questions", 20, bench("questions")),
        Step("linear", 25, bench("linear")),
        Step("step", 60, bench("step")),
        Step("breakdown", 25, bench("breakdown"), env=_KEEP_CUPTI),
        Step("profile", 45, _profile(out, 1, 32768, toy)),
        Step("profile_pool", 60, _profile_pool(out, toy)),
        Step("sweep", 80, bench("sweep")),
        Step("check", 45, _check(toy), crew="checks", read=_cases),
        Step("tests", 90 if workers else 150, _tests(toy, workers), crew="checks", read=_tested, good=_passed(toy)),
        _sanitizer("memcheck", "memory", toy),
        _control(toy),
        *(_sanitizer(tool, "sanitizers", toy) for tool in SANITIZERS if tool != "memcheck"),
        Step("rivals", 60, bench("decode", "rivals")),
        Step("profile16", 30, None if toy else _profile(out, 16, 4096, toy), lacks="the same as profile in a dry run"),
    ]
    tuning = Step("variants", 170, bench("variants", "--open"), group="tuning")
    return [*(replace(step, group="first") for step in first), *second, tuning]


def _smoke(toy: bool) -> list[str]:
    return [sys.executable, str(HERE / "sanitized.py"), *(["--toy"] if toy else [])]


def _check(toy: bool) -> list[str]:
    few = ["--emulated", "--op", "ragged_append", "--op", "ragged_gather"]
    return [sys.executable, "-m", "kvbench_kernels", "check", *(few if toy else [])]


def _cases(output: str) -> dict[str, Any]:
    matches = re.search(r"(\d+) of (\d+) cases ok", output)
    return {"passed": int(matches[1]), "of": int(matches[2])} if matches else {}


def _workers() -> int:
    """Return the number of processes for the tests; 0 without pytest-xdist. Most of a test's time is the CPU's."""
    return 0 if importlib.util.find_spec("xdist") is None else min(12, os.cpu_count() or 1)


def _tests(toy: bool, workers: int) -> list[str]:
    """Return the command for the tests that need a GPU; other test files may need packages that are not installed."""
    marked = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in file.read_text("utf-8")]
    files = [str(file.relative_to(ROOT)) for file in marked]
    few = ["--collect-only"] if toy else ["-n", str(workers)] if workers else []
    # the project's own options ask for plugins that the machine may lack
    how = ["-o", "addopts=--strict-markers", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    how += ["--tb=short", "--durations=8", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", "-m", "cuda", *how, *few, *files]


def _tested(output: str) -> dict[str, Any]:
    matches = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", output)}
    left_out = re.search(r"(\d+) tests cannot run here", output)
    return matches | ({"not_collected": int(left_out[1])} if left_out else {})


def _passed(toy: bool) -> Callable[[int, dict[str, Any]], bool]:
    if toy:
        return lambda code, read: code in (0, 5) and read.get("not_collected", 0) > 0
    return lambda code, read: code == 0 and read.get("passed", 0) > 0


def _sanitizer(tool: str, crew: str, toy: bool) -> Step:
    """Return the step with the cases of `smoke` under one of compute-sanitizer's tools."""
    command = None if toy else _under(tool, [sys.executable, str(HERE / "sanitized.py")])
    lacks = "the same as smoke in a dry run" if toy else _NO_SANITIZER
    return Step(tool, 60, command, crew=crew, env=_no_cache(), read=_ran, good=_clean, lacks=lacks)


def _control(toy: bool) -> Step:
    """Return the step with a planted fault: the sanitizer must find it, or its silence means nothing."""
    program = [sys.executable, str(HERE / "sanitized.py"), "plant"]
    command = None if toy else _under("memcheck", program)
    lacks = "a fault would end the dry run" if toy else _NO_SANITIZER

    def good(_: int, read: dict[str, Any]) -> bool:
        return read.get("found", 0) > 0

    return Step("control", 60, command, crew="memory", env=_no_cache(), read=_ran, good=good, lacks=lacks)


_NO_SANITIZER = "compute-sanitizer is not there"


def _under(tool: str, program: Sequence[str]) -> list[str] | None:
    folders = [os.environ.get(name, "") + "/bin" for name in ("CUDA_HOME", "CUDA_PATH")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"])
    sanitizer = shutil.which("compute-sanitizer", path=path)
    if sanitizer is None:
        return None
    return [sanitizer, "--tool", tool, "--error-exitcode", "86", "--print-limit", "20", *program]


def _no_cache() -> dict[str, str]:
    """Return settings that allocate each tensor separately, so that a read out of its bounds is seen."""
    return {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def _ran(output: str) -> dict[str, Any]:
    matches, ran = _FOUND.findall(output), re.search(r"(\d+) cases ran", output)
    return ({"found": sum(map(int, matches))} if matches else {}) | ({"cases": int(ran[1])} if ran else {})


def _clean(code: int, read: dict[str, Any]) -> bool:
    return code == 0 and read.get("found") == 0 and read.get("cases", 0) > 0


def _profile(out: Path, batch: int, context: int, toy: bool) -> list[str]:
    model, budget, new = ("tiny", 16, 4) if toy else ("shape/llama31_8b", 1024, 32)
    where = [f"profile.context={64 if toy else context}", f"profile.batch={batch}", f"profile.new_tokens={new}"]
    what = [f"model={model}", "method=ada_snapkv", f"budget={budget}", *(["method.window=8"] if toy else [])]
    settings = ["progress=false", f"paths.outputs='{out}'", *(["profile.warmup=0"] if toy else [])]
    return [sys.executable, "-m", "kvbench.profile", *what, *where, *settings]


def _profile_pool(out: Path, toy: bool) -> list[str]:
    """Return the command for throughput against the size of the pool: of 1 to 16 full rows of 32k tokens."""
    model, budget, context, new = ("tiny", 16, 60, 4) if toy else ("shape/llama31_8b", 1024, 32736, 32)
    pools = "64,128" if toy else "32k,64k,128k,256k,512k"  # a full row and its answer take 64 or 32k tokens
    where = [f"profile.context={context}", f"profile.new_tokens={new}", f"profile.pool={pools}"]
    what = [f"model={model}", "method=ada_snapkv", f"budget={budget}", *(["method.window=8"] if toy else [])]
    settings = ["progress=false", f"paths.outputs='{out}'", f"profile.max_rows={8 if toy else 512}"]
    return [sys.executable, "-m", "kvbench.profile", *what, *where, *settings, *(["profile.warmup=0"] if toy else [])]
