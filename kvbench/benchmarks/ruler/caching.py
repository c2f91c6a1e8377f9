"""Generated samples, kept under <KVBENCH_CACHE>/ruler: the same request is generated once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kvbench.benchmarks.ruler.counting import fingerprint
from kvbench.benchmarks.ruler.files import load_records, save_records
from kvbench.benchmarks.ruler.generation import VERSION, generate
from kvbench.benchmarks.ruler.request import RulerRequest
from kvbench.common.paths import cache_dir


def cached(request: RulerRequest) -> list[dict[str, Any]]:
    """Return the samples of a request, from <KVBENCH_CACHE>/ruler/<key>/<task>.jsonl when they are there.

    The key covers the whole request, the tokenizer's and the sources' checksums and the generator's version; about.json
    next to the file spells it out. A damaged file is written again. A tokenizer without a checksum, such as a function,
    is not cached. Raises ValueError as `rows`.
    """
    about = _about(request)
    if about["tokenizer"] is None:
        return generate(request)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_dir() / "ruler" / key / f"{request.task}.jsonl"
    if file.is_file():
        try:
            records = load_records(file, request.task)
        except ValueError:
            records = []
        if len(records) == request.num_samples:
            return records
    records = generate(request)
    save_records(file.with_name("about.json"), [about])
    save_records(file, records)
    return records


def _about(request: RulerRequest) -> dict[str, Any]:
    return {
        "task": request.task,
        "length": request.length,
        "tokenizer": fingerprint(request.tokenizer),
        "seed": request.seed,
        "num_samples": request.num_samples,
        "start": request.start,
        "template": request.wrapper,
        "edit_wrapper": request.edit_wrapper,
        "fit": request.fit,
        "data": {"version": request.texts.version, "sha256": request.texts.checksums(request.task)},
        "generator": VERSION,
    }
