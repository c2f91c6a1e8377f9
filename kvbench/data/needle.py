"""The essays of the published needle tests."""

from __future__ import annotations

from pathlib import Path

from kvbench.data import inventory


def essays_folder() -> Path | None:
    """Return the folder of .txt files that `kvbench data needle` prepared, or None.

    Raises ValueError for an inventory that cannot be read.
    """
    root = inventory.prepared("needle")
    return root / "PaulGrahamEssays" if root else None
