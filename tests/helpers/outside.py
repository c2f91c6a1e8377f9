"""Data that is not in the repository: published texts, predictions and scores, which others may not redistribute.

A test that compares with them is marked `@golden("oracle/needle_rouge.jsonl")`, with the files that it reads. Without
these files it is not collected, and the end of the test run counts and names it (tests/conftest.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("KVBENCH_SHARED") or _CHECKOUT.parent / "shared")
DATA = SHARED / "data"


def golden(*files: str) -> pytest.MarkDecorator:
    """Return the mark of a test that needs these files or folders below `DATA`."""
    return pytest.mark.golden(*files)


def lacking(files: tuple[str, ...]) -> list[str]:
    """Return those of `files` that are not below `DATA`."""
    return [name for name in files if not (DATA / name).exists()]


def read_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file below `DATA`."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").split("\n") if line]
