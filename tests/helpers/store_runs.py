"""Settings of one run, and writers in child processes, for the tests of the store."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from kvbench.store import Run

OPEN: dict[str, Any] = {
    "label": {"benchmark": "needle", "model": "tiny", "method": "snapkv", "budget": "0.2"},
    "identity": {
        "method": {"name": "snapkv"},
        "budget": 0.2,
        "model": {"name": "tiny", "weights": "tiny:0"},
        "protocol": {"name": "needle"},
        "seed": 0,
        "dtype": "float32",
        "backend": "auto-ragged",
    },
    "config": {"budget": 0.2},
    "headline": "recall",
    "num_samples": 3,
    "versions": {"kvbench": "0.1.0"},
    "device": "cpu",
}


def open_run(root: Path, **changes: Any) -> Run:
    return Run.open(root, **{**OPEN, **changes})


def budgeted(budget: str) -> dict[str, Any]:
    """Label and identity of the run under another budget in tokens."""
    return {"label": {**OPEN["label"], "budget": budget}, "identity": {**OPEN["identity"], "budget": int(budget)}}


def record(name: str, status: str = "ok", **more: Any) -> dict[str, Any]:
    if status != "ok":
        return {"id": name, "status": status, "error": "no answer", "meta": {}, **more}
    answer = {"answers": ["7"], "prediction": "Zahl 7 \u2028 \u4e2d\ud800", "scores": {"recall": 1.0}, "meta": {}}
    measured = {"span": 10, "kept_mean": 2.0, "kv_bytes": 20, "kv_bytes_full": 100, "timings": {"ttft_s": 0.1}}
    return {"id": name, "status": status, **answer, **measured, **more}


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (path / "samples.jsonl").read_bytes().splitlines()]


def child(code: str, *arguments: Any) -> subprocess.Popen[str]:
    """Start Python with `budgeted`, `open_run`, `record` and `code`; stdout and stderr are piped."""
    prelude = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from tests.helpers.store_runs import budgeted, open_run, record
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make(
    outputs: Path, budget: str, samples: str, end: BaseException | int | None = None, shard: Any = None, **changes: Any
) -> Path:
    """Record some of three samples and end the run: by `finish` under a limit, or by an exception."""
    try:
        with open_run(outputs / "runs", **budgeted(budget), shard=shard, **changes) as run:
            for name in samples:
                run.append(record(name))
            if isinstance(end, BaseException):
                raise end
            run.finish(end)
    except (RuntimeError, SystemExit):
        pass
    return run.path


def every(folders: list[Path], limit: int | None = None) -> list[tuple[Path, int | None]]:
    """Return runs as a plan takes them."""
    return [(folder, limit) for folder in folders]
