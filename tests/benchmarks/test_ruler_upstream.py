"""RULER's rows against those of upstream's generators: by stored hashes, and against the files where these are here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvbench.benchmarks.ruler import TASKS, RulerRequest, Sources, rows
from tests.golden import make
from tests.helpers.outside import DATA, golden, read_rows
from tests.helpers.ruler_sources import generate, write_sources

STORED = json.loads((make.HERE / "ruler.json").read_text())
WORDS = [("words", length, number) for tokenizer, length, number in make.UPSTREAM if tokenizer == "words"]
SMOLLM2 = [entry for entry in make.UPSTREAM if entry[0] == "smollm2"]
OLD = "ruler/upstream_kvcache_factory/4096/niah_multikey_3.jsonl"


@pytest.fixture(scope="module")
def upstream() -> Sources:
    return Sources.load(DATA / "ruler" / "source")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources.load(write_sources(tmp_path_factory.mktemp("ruler") / "sources"))


@pytest.fixture(scope="module")
def smollm2() -> Any:
    import yaml

    from kvbench import models
    from kvbench.common.paths import conf_dir

    node = yaml.safe_load((conf_dir() / "model" / "smollm2_135m.yaml").read_text())
    return models.load_tokenizer(models.ModelSpec.from_node(node))


# ---- in every clone --------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", make.FITS)
@pytest.mark.parametrize("task", TASKS)
def test_rows_from_our_own_sources_have_the_stored_hash(task: str, fit: str, own: Sources) -> None:
    assert make.rows_hash(make.own_rows(task, fit, own)) == STORED["own"][f"{task}-{fit}"]


@pytest.mark.parametrize("task", make.WITHOUT_SOURCES)
@pytest.mark.parametrize(("tokenizer", "length", "number"), WORDS)
def test_tasks_without_sources_have_upstreams_hash(tokenizer: str, length: int, number: int, task: str) -> None:
    records = generate(task, length, tokenizer, num_samples=number, sources="embedded")
    assert make.rows_hash(records) == STORED["upstream"][f"{tokenizer}-{length}-{task}"]


@pytest.mark.smollm2
@pytest.mark.parametrize("task", make.WITHOUT_SOURCES)
@pytest.mark.parametrize(("tokenizer", "length", "number"), SMOLLM2)
def test_tasks_without_sources_have_upstreams_hash_with_a_real_tokenizer(
    tokenizer: str, length: int, number: int, task: str, smollm2: Any
) -> None:
    records = generate(task, length, smollm2, num_samples=number, sources="embedded")
    assert make.rows_hash(records) == STORED["upstream"][f"{tokenizer}-{length}-{task}"]


# ---- with upstream's sources and files -------------------------------------------------------------


def check_file(folder: str, length: int, task: str, tokenizer: Any, upstream: Sources, number: int) -> None:
    file = Path("ruler") / folder / str(length) / f"{task}.jsonl"
    expected = read_rows(str(file))[:number]
    records = generate(task, length, tokenizer, num_samples=len(expected), sources=upstream)
    assert records == expected
    assert [list(record) for record in records] == [list(record) for record in expected]


@golden("ruler/source", "ruler/golden_ws")
@pytest.mark.parametrize("task", make.tasks_of("words", 1024))
def test_rows_are_upstreams_with_words_as_tokens(task: str, upstream: Sources) -> None:
    check_file("golden_ws", 1024, task, "words", upstream, 5)


@golden("ruler/source", "ruler/smollm2")
@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("length", "task"), [(length, task) for length in (2048, 4096) for task in make.tasks_of("smollm2", length)]
)
def test_rows_are_upstreams_with_a_real_tokenizer(length: int, task: str, upstream: Sources, smollm2: Any) -> None:
    check_file("smollm2", length, task, smollm2, upstream, 30)


@golden("ruler/source", OLD)
def test_linear2024_is_a_published_file_of_2024(upstream: Sources) -> None:
    # its tokenizer is not here, but this count stops at the same 50 needles; they need no word lists either
    expected = read_rows(OLD)

    def count(text: str) -> int:
        return int(len(text) / 2.2)

    request = RulerRequest("niah_multikey_3", 4096, count, num_samples=500, sources=upstream, fit="linear2024")
    for record, row in zip(rows(request), expected, strict=True):
        assert {**record, "length": row["length"]} == row
