"""`save.kept=true`: the saved masks are those of the recorded counts, and nothing else changes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from kvbench import store
from kvbench.run import runner
from kvbench.run.jobs import Job
from tests.helpers.runs import answers, records

Jobs = Callable[..., list[Job]]
SAVE = "save.kept=true"


def test_saved_masks_count_as_the_records_say(jobs: Jobs) -> None:
    methods = [["method=fullkv"], *([f"method={name}", "budget=100"] for name in ("ada_pyramidkv", "kvzip", "quest"))]
    outcomes = runner.run_jobs(jobs(*([*words, SAVE] for words in methods)))
    assert [outcome.error for outcome in outcomes] == [None] * len(methods)
    for outcome in outcomes:
        kept = store.read_kept(outcome.folder)
        for record in records(outcome):
            saved = kept[record["id"]]
            assert saved.mask_LUT.sum(2).tolist() == record["kept"]
            assert len(saved.tokens) == record["span"] and record["answers"][0] in "".join(saved.tokens)


def test_it_is_off_by_default_and_changes_neither_identity_nor_answers(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["method=ada_snapkv", "budget=100"]
    (plain,) = runner.run_jobs(jobs(words))
    before = answers(plain)
    assert not list(plain.folder.glob("kept*"))
    with caplog.at_level(logging.WARNING):
        (again,) = runner.run_jobs(jobs([*words, SAVE]))
    assert again.folder == plain.folder and "6 samples were recorded without save.kept=true" in caplog.text
    for file in plain.folder.iterdir():
        file.unlink()
    (saved,) = runner.run_jobs(jobs([*words, SAVE]))
    assert answers(saved) == before and len(store.read_kept(saved.folder)) == 6


def test_a_method_that_chooses_again_and_again_is_refused(jobs: Jobs) -> None:
    (outcome,) = runner.run_jobs(jobs(["method=streaming_llm_true", "budget=100", SAVE]))
    assert "save.kept=true: streaming_llm_true takes its prompt in chunks" in str(outcome.error)
