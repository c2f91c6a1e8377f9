"""The published needle tests: their YAML files, and the published construction."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.golden import make as golden_values
from tests.helpers.needle_forms import CONF, SANDWICH, ToyTokenizer, make, settings
from tests.helpers.outside import DATA, golden, read_rows

OPTIONS = sorted(path.stem for path in CONF.glob("needle*.yaml"))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with essays as `kvbench data needle` leaves them."""
    folder = tmp_path / "data" / "needle" / "PaulGrahamEssays"
    folder.mkdir(parents=True)
    (folder / "b.txt").write_text("This was written last, on a long and rainy day. " * 400)
    (folder / "a.txt").write_text("This was written first. It is short. " * 400)
    texts = {f"PaulGrahamEssays/{name}.txt": (folder / f"{name}.txt").read_bytes() for name in "ab"}
    files = {key: {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)} for key, text in texts.items()}
    (folder.parent / "manifest.json").write_text(json.dumps({"part": "needle", "files": files, "missing": []}))
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    return folder


def test_an_essay_that_changed_is_an_error(prepared: Path) -> None:
    (prepared / "a.txt").write_text("Short.")
    with pytest.raises(ValueError, match=r"a\.txt: was changed after it was prepared; fetch it again"):
        make("needle_classic").protocol()


def test_the_sandwich_of_pyramidkv_is_a_raw_prompt(prepared: Path) -> None:
    benchmark = make("needle_pyramidkv", start=1000, end=1100)
    samples = benchmark.samples(ToyTokenizer())
    assert [sample.id for sample in samples][9:11] == ["len01000-depth100-seed0", "len01100-depth000-seed0"]
    sample = samples[3]
    assert SANDWICH in sample.context and not sample.chat and (sample.stop, sample.max_new_tokens) == (("\n",), 30)
    start, end = "<|im_start|> This is a very long story book: <book> This was written first.", "Park on a sunny day.\n"
    assert sample.context.startswith(start) and samples[9].context.endswith(end)
    assert sample.question.endswith("Question: The best thing to do in San Francisco is: \nAnswer:")
    assert (benchmark.question, sample.answer_prefix, benchmark.headline) == ("aware", "", "overlap")
    scores = benchmark.score(sample.answers, f" {sample.answers[0]}", sample.meta)
    assert scores == {"overlap": 1.0, "rouge1": pytest.approx(0.7272727), "recall": 1.0}


def test_the_grids_are_the_published_ones() -> None:
    classic, pyramidkv = make("needle_classic"), make("needle_pyramidkv")
    assert classic.lengths == tuple(int(x) for x in np.round(np.linspace(1000, 16000, 35)))
    assert classic.depths == tuple(int(x) for x in np.round(np.linspace(0, 100, 35)))
    assert pyramidkv.lengths == tuple(range(1000, 8001, 100)) and len(pyramidkv.lengths) == 71
    assert len(make("needle_pyramidkv", start=400, end=32000, step=400).lengths) == 80  # theirs for Mistral
    assert make("needle_agnostic").lengths == tuple(range(1000, 8001, 1000))


def test_question_agnostic_contexts_do_not_hold_the_question(prepared: Path) -> None:
    benchmark = make("needle_agnostic", end=1000)
    assert benchmark.protocol()["question"] == "agnostic"
    for sample in benchmark.samples(ToyTokenizer()):
        key = re.search(r"magic numbers for (\w+-\w+) is", sample.context).group(1)
        assert key in sample.question and "What is" not in sample.context


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_every_key_and_its_own_name(option: str, prepared: Path) -> None:
    assert set(settings(option)) == set(settings("needle"))
    benchmark = make(option)
    assert benchmark.name == option == benchmark.protocol()["name"]
    assert benchmark.column is None and benchmark.rendering.style == (
        "upstream" if option == "needle_pyramidkv" else "strict"
    )


def test_essays_are_the_prepared_folder_or_the_command_that_makes_it(prepared: Path) -> None:
    benchmark = make("needle_classic")
    assert benchmark.protocol() == make("needle_classic", haystack=str(prepared)).protocol()
    (prepared.parent / "manifest.json").unlink()  # written last: without it the folder may be half there
    with pytest.raises(ValueError, match=r"^benchmark\.haystack=essays: .*kvbench data needle") as error:
        make("needle_classic").protocol()
    assert "benchmark.haystack=generated" in str(error.value) and "\n" not in str(error.value)


ORACLE = "oracle/needle_insertion.jsonl"


def check_rows(tokenizer: Any, name: str) -> None:
    """Compare with every recorded row of the published construction, prompt included: function and YAML alike."""
    folder = DATA / "needle" / "PaulGrahamEssays"
    rows = [row for row in read_rows(ORACLE) if row["tokenizer"] == name]
    lengths, depths = (sorted({row[key] for row in rows}) for key in ("context_length", "depth_percent"))
    benchmark = make(
        "needle_pyramidkv", lengths=lengths, depths=depths, start=None, end=None, step=None, haystack=str(folder)
    )
    samples = {(s.meta["length"], s.meta["depth"]): s for s in benchmark.samples(tokenizer)}
    assert rows and len(samples) == len(lengths) * len(depths)
    for row in rows:
        sample = samples[row["context_length"], row["depth_percent"]]
        context = sample.context.removeprefix(benchmark.preamble)
        assert hashlib.sha256(context.encode()).hexdigest() == row["sha256"], row
        assert row["insertion_token_index"] == sample.meta["needle_token"]
        prompt = sample.context + sample.question + sample.answer_prefix
        assert hashlib.sha256(prompt.encode()).hexdigest() == row["prompt_sha256"]


@golden("needle/protocols.json")
def test_the_published_forms_say_what_was_published() -> None:
    protocol = json.loads((DATA / "needle" / "protocols.json").read_text())
    theirs, ours = protocol["pyramidkv"], make("needle_pyramidkv")
    before, after = theirs["prompt"].split("{context}")
    assert (ours.preamble, ours.question_text) == (before, after.replace("{question}", theirs["question"]))
    assert (ours.depths, ours.buffer) == (tuple(theirs["depths"]), theirs["buffer"])
    assert ours.max_new_tokens == theirs["max_new_tokens"]
    theirs, ours = protocol["gkamradt"], make("needle_classic")
    assert (ours.buffer, ours.max_new_tokens) == (theirs["buffer"], theirs["max_new_tokens"])
    frame = theirs["anthropic_prompt"].replace("{retrieval_question}", theirs["question"])
    our_frame = f"{ours.preamble}{{context}}{ours.question_text}\n\nAssistant: {ours.answer_prefix}"
    assert frame == our_frame.replace("<context>", "Human: <context>")
    assert {make(name).needle for name in ("needle_classic", "needle_pyramidkv")} == {protocol["needle"]}


@golden(ORACLE, "needle/PaulGrahamEssays")
def test_published_construction_with_the_toy_tokenizer() -> None:
    check_rows(ToyTokenizer(), "toy")


@golden(ORACLE, "needle/PaulGrahamEssays")
@pytest.mark.smollm2
def test_published_construction_with_the_smollm2_tokenizer() -> None:
    from kvbench import models

    preset = yaml.safe_load((CONF.parent / "model" / "smollm2_135m.yaml").read_text())
    check_rows(models.load_tokenizer(models.ModelSpec.from_node(preset)), "smollm2")


def test_contexts_in_our_own_prose_have_the_stored_hash() -> None:
    assert golden_values.needle_contexts() == json.loads((golden_values.HERE / "needle.json").read_text())
