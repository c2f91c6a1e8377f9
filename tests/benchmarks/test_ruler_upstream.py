"""RULER's samples against files that upstream's generators wrote; without such files there is nothing to compare."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvbench.benchmarks.ruler import Sources, generate, rows

SHARED = Path(os.environ.get("KVBENCH_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "ruler"
GOLDEN_WORDS = sorted((SHARED / "golden_ws").glob("*/*.jsonl"))
GOLDEN_SMOLLM2 = sorted((SHARED / "smollm2").glob("*/*.jsonl"))
OLD = SHARED / "upstream_kvcache_factory" / "4096" / "niah_multikey_3.jsonl"


@pytest.fixture(scope="module")
def upstream() -> Sources:
    return Sources.load(SHARED / "source")


def check_golden(file: Path, tokenizer: Any, upstream: Sources, number: int) -> None:
    golden = [json.loads(line) for line in file.read_text().splitlines()][:number]
    made = generate(file.stem, int(file.parent.name), tokenizer, num_samples=len(golden), sources=upstream)
    assert made == golden
    assert [list(record) for record in made] == [list(record) for record in golden]


@pytest.mark.parametrize("file", GOLDEN_WORDS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_samples_are_upstreams_with_words_as_tokens(file: Path, upstream: Sources) -> None:
    check_golden(file, "words", upstream, 5)


@pytest.mark.smollm2
@pytest.mark.parametrize("file", GOLDEN_SMOLLM2, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_samples_are_upstreams_with_a_real_tokenizer(file: Path, upstream: Sources, smollm2: Any) -> None:
    check_golden(file, smollm2, upstream, 30)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    import yaml

    from kvbench import models
    from kvbench.paths import conf_dir

    return models.load_tokenizer(yaml.safe_load((conf_dir() / "model" / "smollm2_135m.yaml").read_text()))


@pytest.mark.parametrize("file", [OLD] if OLD.is_file() else [], ids=lambda file: file.stem)
def test_linear2024_is_a_published_file_of_2024(file: Path, upstream: Sources) -> None:
    # its tokenizer is not here, but this count stops at the same 50 needles; they need no word lists either
    golden = [json.loads(line) for line in file.read_text().splitlines()]
    made = rows(
        "niah_multikey_3", 4096, lambda text: int(len(text) / 2.2), num_samples=500, sources=upstream, fit="linear2024"
    )
    for record, expected in zip(made, golden, strict=True):
        assert {**record, "length": expected["length"]} == expected
