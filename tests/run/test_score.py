"""Scoring as a step of its own: of run folders, and of the prediction files of other harnesses."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from kvbench import models, store
from kvbench.benchmarks import needle
from kvbench.metrics import needle as metrics
from kvbench.run import rescore, runner
from kvbench.run.jobs import Job, prepare
from kvbench.run.rescore import benchmark_of
from kvbench.run.score import main
from tests.helpers.longbench_made_up import ANSWERS, CLASSES


@pytest.fixture
def job(tmp_path: Path, compose: Callable[..., DictConfig]) -> Callable[[], Job]:
    """A needle job of two samples for the tiny model, composed again at every call."""

    def compose_job() -> Job:
        shared = ["model=tiny", "benchmark=needle", "benchmark.lengths=[300]", "benchmark.depths=[0,50]"]
        shared += ["method=snapkv", "budget=100", f"paths.outputs={tmp_path}", "progress=false"]
        (prepared,) = prepare(compose(*shared))
        return prepared

    return compose_job


def test_a_new_metric_scores_old_answers_without_a_model(
    job: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    (outcome,) = runner.run_jobs([job()])
    recorded = (outcome.folder / "samples.jsonl").read_bytes()
    assert outcome.score == 0.0 and not (outcome.folder / "scores.json").exists()

    monkeypatch.setitem(metrics.VERSIONS, "recall", 99)
    monkeypatch.setattr(needle, "exact_recall", lambda prediction, answers: 1.0)
    monkeypatch.setattr(models, "load", lambda node: pytest.fail("a model was loaded"))
    (again,) = runner.run_jobs([job()])
    assert again.folder == outcome.folder and again.score == 1.0
    stored = store.load_run(outcome.folder)
    assert stored.manifest["scoring"]["metrics"]["recall"] == 99
    assert [sample["scores"]["recall"] for sample in stored.samples] == [1.0, 1.0]
    assert (outcome.folder / "samples.jsonl").read_bytes() == recorded


def test_runs_that_cannot_be_written_are_scored_elsewhere(
    job: Callable[[], Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    (outcome,) = runner.run_jobs([job()])
    monkeypatch.setattr("kvbench.store.read.write_atomic", read_only)
    assert main([str(outcome.folder), "--quiet", "--workers", "1"]) == 2
    line = f"kvbench: {outcome.folder}/scores.json: Read-only file system; scores are stored with the runs: copy these "
    assert capsys.readouterr().err == line + "to a folder that can be written, and score them there\n"


def test_the_command_scores_runs(job: Callable[[], Job], capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = runner.run_jobs([job()])
    before = store.load_run(outcome.folder)
    assert main([str(outcome.folder.parent), "--quiet", "--workers", "1"]) == 0
    after = store.load_run(outcome.folder)
    assert (outcome.folder / "scores.json").is_file() and after.samples == before.samples
    assert "snapkv" in capsys.readouterr().out
    assert main([str(outcome.folder), "--quiet", "--workers", "2"]) == 0


def test_a_run_folder_names_no_code(job: Callable[[], Job], tmp_path: Path) -> None:
    (outcome,) = runner.run_jobs([job()])
    file = outcome.folder / "config.yaml"
    file.write_text(file.read_text().replace("kvbench.benchmarks.needle.Needle", "os.system"))
    assert type(benchmark_of(store.load_run(outcome.folder))).__name__ == "Needle"
    file.write_text(file.read_text().replace("name: needle", "name: nonsense"))
    with pytest.raises(ValueError, match="benchmark=nonsense"):
        benchmark_of(store.load_run(outcome.folder))


def predictions(folder: Path, with_answers: bool = True) -> Path:
    """Write files as LongBench's own script does: one right and one wrong answer."""
    folder.mkdir()
    for dataset, classes in (("trec", CLASSES), ("lcc", None), ("qasper_e", None)):
        answer = ANSWERS.get(dataset, "a small mat")
        rows = [{"pred": answer, "length": 100}, {"pred": "§", "length": 9000}]
        more = {"answers": [answer], "all_classes": classes} if with_answers else {}
        lines = [json.dumps(row | more) for row in rows]
        (folder / f"{dataset}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_predictions_of_another_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = predictions(tmp_path / "pred")
    assert main([str(folder), "--quiet", "--json", str(tmp_path / "scores.json")]) == 0
    scored = json.loads((tmp_path / "scores.json").read_text())
    assert {name: row["score"] for name, row in scored["datasets"].items()} == {"qasper_e": 50, "trec": 50, "lcc": 50}
    assert scored["datasets"]["lcc"]["code_sim_indel"] == 50 and scored["datasets"]["lcc"]["n"] == 2
    assert scored["buckets"]["qasper_e"]["0-4k"] == 100 and scored["buckets"]["qasper_e"]["8k+"] == 0
    assert scored["categories"] == {"single-doc QA": 50, "few-shot": 50, "code": 50} and scored["averages"] == {}
    assert "few-shot" in capsys.readouterr().out


def test_answers_from_a_folder(tmp_path: Path) -> None:
    folder, truth = predictions(tmp_path / "pred", with_answers=False), predictions(tmp_path / "truth")
    assert main([str(folder), "--quiet", "--answers", str(truth), "--json", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["datasets"]["trec"]["score"] == 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "trec.jsonl, line 1: cut off or not JSON"),
        ('{"answers": ["a"]}\n', 'line 1: no text under "pred"'),
        ('{"pred": "a"}\n', "--answers"),
        ('{"pred": "a", "dataset": "trek"}\n', "'trek' is not a dataset"),
    ],
)
def test_mistakes_in_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "trec.jsonl").write_text(text)
    assert main([str(tmp_path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_would_be_ignored_or_counted_twice_is_refused(
    job: Callable[[], Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (outcome,) = runner.run_jobs([job()])
    folder, more = predictions(tmp_path / "pred"), predictions(tmp_path / "more")
    capsys.readouterr()
    for arguments, message in (
        ([outcome.folder, folder], "by one command each"),
        ([outcome.folder, "--json", tmp_path / "x.json"], "--json: for prediction files"),
        ([folder, more], "give each dataset once"),
        ([folder / "lcc.jsonl", "--code-backend", "lev"], "code_backend=lev"),
    ):
        assert main([*map(str, arguments), "--quiet"]) == 2
        assert message in capsys.readouterr().err


def test_a_run_gets_new_scores_only_when_every_answer_has_one(
    job: Callable[[], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are scored in parts. The second part fails."""
    (outcome,) = runner.run_jobs([job()])
    real, parts = rescore._scores, list[int]()

    def scores(*args: Any) -> dict[str, dict[str, float]]:
        parts.append(len(args[2]))
        if len(parts) == 2:
            raise ValueError("a record does not hold what scoring needs")
        return real(*args)

    monkeypatch.setattr(rescore, "_CHUNK", 1)
    monkeypatch.setattr(rescore, "_scores", scores)
    assert rescore.score_folders([outcome.folder], workers=1, progress=False) == []
    assert parts == [1, 1] and not (outcome.folder / "scores.json").exists()
    assert rescore.score_folders([outcome.folder], workers=1, progress=False) == [outcome.folder]
    assert len(json.loads((outcome.folder / "scores.json").read_text())["scores"]) == 2


def test_a_damaged_run_is_skipped(job: Callable[[], Job], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (outcome,) = runner.run_jobs([job()])
    damaged = outcome.folder.with_name("damaged-b1-00000000")
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    with caplog.at_level("WARNING"):
        assert main([str(outcome.folder.parent), "--quiet", "--workers", "1"]) == 0
    assert "manifest.json: schema is missing; move the folder away" in caplog.text
    assert (outcome.folder / "scores.json").is_file()
    (outcome.folder / "scores.json").write_text("{}")
    with pytest.raises(ValueError, match="delete this file, the run has"):
        store.load_run(outcome.folder)


def test_nothing_to_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--quiet"]) == 2
    assert "neither run folders nor" in capsys.readouterr().err
