"""The commit of kvbench that is running."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """Return the commit of this checkout, with a "+" if its sources have changed since.

    A copy without a history takes it from the environment variable KVBENCH_COMMIT; None if that is unset.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/") != root:
            return os.environ.get("KVBENCH_COMMIT")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "kvbench", "kernels")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.TimeoutExpired):
        return os.environ.get("KVBENCH_COMMIT")
