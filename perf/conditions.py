"""The conditions of a measurement, and its result as JSON: the last part of every script in this folder that measures.

The scripts import it as `conditions`, because Python looks for modules next to the script that it runs.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import kvbench
from kvbench.common.commit import commit


def conditions(loaded: Any, name: str, threads: int) -> dict[str, object]:
    """Return what a measurement depends on.

    Args:
        loaded: the model with its tokenizer, as `kvbench.load_model(name)` returns it.
        threads: CPU threads that it had.
    """
    return {
        "model": name,
        "dtype": str(loaded.model.dtype),
        "device": str(loaded.model.device),
        **where(threads),
    }


def where(threads: int) -> dict[str, object]:
    """Return threads, machine, versions, commit and date: what also a measurement without a model depends on."""
    return {
        "threads": threads,
        "machine": platform.machine(),
        "versions": {
            "kvbench": kvbench.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def report(result: Mapping[str, object], out: Path | None) -> None:
    """Print a result, and write it to a file if one is given."""
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
