"""The essays that published needle tests hide their needle in."""

from __future__ import annotations

from pathlib import Path

from kvbench.data import manifest


def essays_folder() -> Path | None:
    """The folder of .txt files that `python -m kvbench.data needle` prepared, or None.

    Raises ValueError for a manifest that cannot be read.
    """
    root = manifest.prepared("needle")
    return root / "PaulGrahamEssays" if root else None
