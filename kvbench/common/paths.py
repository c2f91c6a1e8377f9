"""Paths of the configuration folder and of the cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def conf_dir() -> Path:
    """Return the folder with the YAML groups: inside the package when installed, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise ValueError(f"no conf/ folder in {package} or next to it: install kvbench again")


def shown_settings(name: str) -> str:
    """Return the settings in conf/<name>.yaml for a help text: indented, without the lines that are comments."""
    text = (conf_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    return "".join(f"  {line}\n" for line in text.splitlines() if not line.startswith("#"))


def cache_dir() -> Path:
    """Return the cache root, created if necessary: the environment variable KVBENCH_CACHE, else ~/.cache/kvbench.

    Raises ValueError when the folder cannot be created or written.
    """
    root = Path(os.environ.get("KVBENCH_CACHE") or Path.home() / ".cache" / "kvbench").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        # os.access lies on network and read-only file systems, so really write something
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise ValueError(
            f"KVBENCH_CACHE={root}: this folder cannot be written ({error.strerror}); set it to another one"
        ) from error
    return root.resolve()
