"""Jobs: a composed configuration is checked by the parts of its method before anything is fetched or loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from kvbench.run import jobs
from kvbench.run.jobs import prepare, settle
from tests.helpers.methods import head_table


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget=32"], "budget=32: ada_pyramidkv always keeps 32 tokens (method.window=32)"),
        (["method=streaming_llm", "budget=4"], "budget=4: streaming_llm always keeps 4 tokens (method.sinks=4)"),
        (["method=snapkv", "budget=9", "method.window=4", "method.sinks=5"], "(method.sinks=5, method.window=4)"),
        (["method.window=-1"], "method.window=-1: must be at least 1"),
        (["method.kernel_size=4"], "method.kernel_size=4: must be odd"),
        (["method.pooling=min"], "method.pooling=min: must be one of avg, max, none"),
        (["method.floor=1.2"], "method.floor=1.2: must be at most 1"),
        (["method=h2o_decode", "method.window=-3"], "method.window=-3: must be at least 0"),
        (["method=h2o", "method.reduce=median"], "method.reduce=median: must be one of mean, max, sum"),
        (["method=pyramidkv", "method.allocation=half"], "method.allocation=half: must be one of exact, reference"),
        (["method=kivi", "method.bits=3"], "method.bits=3: must be 2, 4 or 8"),
    ],
)
def test_impossible_dials_are_one_line(compose: Callable[..., DictConfig], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settle(compose(*overrides))
    assert "\n" not in str(caught.value)


def test_a_job_is_checked_once_and_hashed_once(
    compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for module, name in ((jobs, "build"), (jobs.config, "check"), (jobs.store, "run_folder")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    (job,) = prepare(compose("model=tiny", "budget=100"))
    for _ in range(3):
        assert job.folder and job.key and job.group
    assert sorted(calls) == ["build", "check", "run_folder"]


def test_a_sweep_checks_every_job_before_the_first_file_is_read(
    compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvbench.sweep.compose import Composed, check

    order: list[str] = []
    for name in ("build", "_protocol"):
        real = getattr(jobs, name)
        monkeypatch.setattr(jobs, name, lambda *a, real=real, name=name: order.append(name) or real(*a))

    def composed(*overrides: str) -> Composed:
        job = Composed(list(overrides), compose("model=tiny", "budget=100", *overrides))
        job.__dict__ |= {"task": job.config, "choices": None}  # without Hydra's own node
        return job

    monkeypatch.setattr(Composed, "choices", None)
    sweep = [composed("method=snapkv"), composed("method=h2o")]
    check(sweep)
    assert order == ["build", "build", "_protocol", "_protocol"]
    assert [len(job.jobs) for job in sweep] == [1, 1]
    with pytest.raises(ValueError, match="method.reduce=x"):
        check([composed("method=snapkv"), composed("method=h2o", "method.reduce=x")])


@pytest.mark.parametrize(
    ("typed", "name"),
    [("kivi+ada_snapkv", "ada_snapkv+kivi"), ("h2o_decode+pyramidkv+kivi", "pyramidkv+h2o_decode+kivi")],
)
def test_a_combination_is_one_run_whatever_the_order(compose: Callable[..., DictConfig], typed: str, name: str) -> None:
    sweep = [prepare(compose(f"method={text}", "model=tiny", "budget=100"))[0] for text in (typed, name, "snapkv")]
    first, second, other = sweep
    assert first.folder == second.folder and first.key == second.key
    assert first.label["method"] == name and first.folder.name.startswith(f"{name}-b100-")
    assert first.group == other.group, "they share their prefills"


def test_the_content_of_a_file_makes_the_run(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another table under the same name is another run, and the same table under another name is not."""
    monkeypatch.chdir(tmp_path)

    def folder(file: str) -> str:
        (job,) = prepare(compose("method=headkv", "model=tiny", "budget=100", f"method.table={file}"))
        return job.folder.name

    shutil.copy(head_table(4, 4), "a.json")
    shutil.copy(head_table(4, 4), "b.json")
    first = folder("a.json")
    assert folder("b.json") == folder(str(tmp_path / "a.json")) == first
    shutil.copy(head_table(4, 4, seed=1), "a.json")
    assert folder("a.json") != first
    with pytest.raises(ValueError, match=r"^method\.table=c\.json: no such file"):
        prepare(compose("method=headkv", "model=tiny", "budget=100", "method.table=c.json"))
