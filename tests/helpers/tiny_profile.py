"""`kvbench profile` on the tiny model, and the cells that it has recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvbench.profile.__main__ import main

SMALL = ["model=tiny", "kernel=torch", "progress=false", "threads=1", "profile.new_tokens=6", "profile.warmup=0"]


def profile(*overrides: str) -> int:
    return main([*SMALL, *overrides])


def lines(root: Path) -> list[dict[str, Any]]:
    (file,) = root.glob("profile/*/cells.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]
