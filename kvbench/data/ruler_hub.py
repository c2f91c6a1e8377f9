"""RULER as NVIDIA/kvpress publishes it on the Hugging Face hub (simonjegou/ruler): lengths 4096, 8192 and 16384.

Made with the tokenizer of Llama-3.1 for every model, so its scores compare only with others made from it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from kvbench.common.paths import cache_dir

DATASET = "simonjegou/ruler"


def hub_file(length: int) -> Path:
    """The data set of one length as JSONL, all tasks together; fetched once through `datasets`.

    Raises ValueError when the hub cannot be reached or has no such length.
    """
    file = cache_dir() / "data" / "ruler-hub" / f"{length}.jsonl"
    if file.is_file():
        return file
    import datasets

    try:
        rows = datasets.load_dataset(DATASET, str(length), split="test")
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"benchmark.files=hub: {DATASET} with length {length} could not be had ({reason})") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, file)
    return file
