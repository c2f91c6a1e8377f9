"""RULER as NVIDIA/kvpress publishes it on the Hugging Face hub (simonjegou/ruler): lengths 4096, 8192 and 16384.

It was generated with the tokenizer of Llama-3.1 for every model, so its scores compare only among themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

from kvbench.common.files import replacing
from kvbench.common.paths import cache_dir

DATASET = "simonjegou/ruler"


def hub_file(length: int) -> Path:
    """Return the data set of one length as JSONL, all tasks together; it is fetched once through `datasets`.

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
        raise ValueError(f"benchmark.files=hub: {DATASET} with length {length} cannot be fetched ({reason})") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file
