"""Shared code of this folder's benchmarks: arguments, the device, and records that are written at once.

A benchmark runs on the GPU, or, with --toy, at toy sizes on the CPU with the kernels emulated: the same code, figures
that mean nothing. Every record is a line of JSON of its own, with device, versions, commit, date and command.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kvbench.common.commit import commit
from kvbench_kernels import build, ops

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "triton", "transformers", "numpy", "fa3-fwd", "flash-attn")


class Bench:
    """One benchmark's process. `left` is what remains of the time it was given."""

    def __init__(self, name: str, doc: str | None, argv: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the records to this file")
        parser.add_argument("--seconds", type=float, default=600, help="start nothing new after this time")
        parser.add_argument("--toy", action="store_true", help="toy sizes on the CPU, kernels emulated: no figures")
        arguments = parser.parse_args(argv)
        self.name, self.toy, self._out = name, arguments.toy, arguments.out
        self._end = time.monotonic() + arguments.seconds
        if not self.toy and not torch.cuda.is_available():
            raise SystemExit(f"{name}: torch finds no GPU; --toy goes through it on the CPU")
        if self.toy and self._out is not None and (ROOT / "perf/results") in self._out.resolve().parents:
            raise SystemExit(f"--out {self._out}: a toy run's figures mean nothing; not among the results")
        self.device = torch.device("cpu" if self.toy else "cuda")
        self.generator = torch.Generator(self.device).manual_seed(0)
        torch.manual_seed(0)

    def left(self) -> float:
        """Return the seconds until the time is up."""
        return self._end - time.monotonic()

    def record(self, **values: Any) -> None:
        """Print a result, and append it to the file."""
        print(self.name, " ".join(f"{key}={_short(value)}" for key, value in values.items()), flush=True)
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            with self._out.open("a") as file:
                file.write(json.dumps({"bench": self.name, **values, "about": self.about}) + "\n")

    @cached_property
    def about(self) -> dict[str, Any]:
        """Device, driver, versions, commit, date, command."""
        return {
            "device": device_facts(self.device),
            "toy": self.toy,
            "versions": versions(),
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *(word.replace(f"{ROOT}/", "") for word in sys.argv)]),
        }

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Compile the kernels if need be; on the CPU they are emulated inside."""
        if self.device.type == "cuda":
            ops.prepare(self.device)
            yield
            return
        with ops.emulated(build.host()):
            yield

    def survive(self, problem: Exception, who: str) -> str:
        """Return the first line of a problem that a rival had.

        Raises:
            SystemExit: an error that ended the CUDA context, for example an illegal access: nothing can run after it.
        """
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except Exception as error:
                self.record(what="stopped", by=who, missing=line)
                raise SystemExit(f"{self.name}: {who} ended the CUDA context, nothing can follow: {line}") from error
        return line

    def clean(self) -> None:
        """Give back what torch holds of the GPU for nothing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, size and driver."""
    if device.type != "cuda":
        return {"type": "cpu", "name": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(device)
    asked = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu")
    printed = _output(["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"])
    return {
        "type": "cuda",
        "name": properties.name,
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2": properties.L2_cache_size,
        "capability": f"{properties.major}.{properties.minor}",
        **dict(zip(asked, printed, strict=False)),
    }


def versions() -> dict[str, str | None]:
    """Return the versions that the figures depend on; None for a package that is not installed."""
    matches: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in _PACKAGES:
        try:
            matches[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            matches[name] = None
    matches["torch"] = torch.__version__
    return matches


def _output(command: list[str]) -> list[str]:
    """Return a command's output, split at its commas; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [part.strip() for part in done.stdout.strip().split(",") if part.strip()]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
