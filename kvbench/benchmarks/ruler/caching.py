"""Generated samples, kept under <KVBENCH_CACHE>/ruler: the same request is generated once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvbench.benchmarks.ruler.counting import fingerprint
from kvbench.benchmarks.ruler.generation import VERSION, generate
from kvbench.benchmarks.ruler.records import load_records, save_records
from kvbench.benchmarks.ruler.sources import Sources
from kvbench.benchmarks.ruler.tasks import TEMPLATES, find_task
from kvbench.common.paths import cache_dir


def cached(
    task: str,
    length: int,
    tokenizer: Any,
    *,
    num_samples: int = 500,
    seed: int = 42,
    sources: Sources | str | Path | None = None,
    template: str = "base",
    edit_wrapper: bool = True,
    fit: str = "head",
    start: int = 0,
) -> list[dict[str, Any]]:
    """As `generation.generate`, from <KVBENCH_CACHE>/ruler/<key>/<task>.jsonl when it is there.

    The key covers all arguments, the tokenizer's and the sources' checksums and the generator's version; about.json
    beside the file spells it out. A damaged file is made again. A tokenizer without a checksum, such as a function, is
    not cached. Raises ValueError as `generate`.
    """
    texts = sources if isinstance(sources, Sources) else Sources.load(sources)
    made_of = {
        "task": find_task(task).name,
        "length": length,
        "tokenizer": fingerprint(tokenizer),
        "seed": seed,
        "num_samples": num_samples,
        "start": start,
        "template": TEMPLATES.get(template, template),
        "edit_wrapper": edit_wrapper,
        "fit": fit,
        "data": {"version": texts.version, "sha256": texts.checksums(task)},
        "generator": VERSION,
    }

    def fresh() -> list[dict[str, Any]]:
        return generate(
            task,
            length,
            tokenizer,
            num_samples=num_samples,
            seed=seed,
            sources=texts,
            template=template,
            edit_wrapper=edit_wrapper,
            fit=fit,
            start=start,
        )

    if made_of["tokenizer"] is None:
        return fresh()
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_dir() / "ruler" / key / f"{task}.jsonl"
    if file.is_file():
        try:
            records = load_records(file, task)
        except ValueError:
            records = []
        if len(records) == num_samples:
            return records
    records = fresh()
    save_records(file.with_name("about.json"), [made_of])
    save_records(file, records)
    return records
