"""Jobs: a composed configuration is checked by the parts of its method before anything is fetched or loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from kvbench.run import jobs
from kvbench.run.jobs import check_config, prepare
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
        check_config(compose(*overrides))
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


def test_a_budget_that_does_not_apply_is_a_line_per_method(
    compose: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names, budgets = ("fullkv", "corm", "h2o"), (64, 0.5, 100)
    words = [["model=tiny", f"method={name}", f"budget={budget}"] for name in names for budget in budgets]
    jobs.say_budgets([check_config(compose(*of_job)) for of_job in words])
    assert [record.getMessage() for record in caplog.records if "does not apply" in record.getMessage()] == [
        "fullkv keeps every token: budget=64,0.5,100 does not apply to it",
        "corm decides by itself how many tokens stay: budget=64,0.5,100 does not apply to it",
    ]
    caplog.clear()
    prepare(compose(*words[0]))
    assert caplog.text.count("fullkv keeps every token: budget=64 does not apply to it") == 1


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark=ruler", "method=snapkv"], "set seed=0; its samples follow from benchmark.seed=42"),
        (["benchmark=longbench", "method=fullkv"], "neither benchmark=longbench nor method=fullkv draws by it"),
        (["benchmark=needle_classic", "method=snapkv"], "set seed=0"),
        (["benchmark=needle", "benchmark.seed=3"], "set seed=0; its samples follow from benchmark.seed=3"),
        (["benchmark=ruler", "method=cam_decode", "method.phase=prefill"], "nor method=cam_decode draws by it"),
    ],
)
def test_a_seed_by_which_nothing_draws_is_one_line(
    compose: Callable[..., DictConfig], overrides: list[str], message: str
) -> None:
    shared = ["model=tiny", "budget=100", *overrides]
    with pytest.raises(ValueError, match="^seed=1: neither benchmark=") as caught:
        check_config(compose(*shared, "seed=1"))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    check_config(compose(*shared))


@pytest.mark.parametrize(
    "overrides",
    [
        ["benchmark=needle", "method=snapkv"],
        ["benchmark=needle_classic", "benchmark.haystack=generated", "method=snapkv"],
        ["benchmark=needle_classic", "method=cam"],
        ["benchmark=ruler", "method=cam_decode"],
        ["benchmark=ruler", "method=ada_snapkv+cam_decode"],
        ["benchmark=ruler", "benchmark.seed=${seed}", "method=snapkv"],
        ["benchmark=needle", "benchmark.seed=${oc.select:seed,0}", "method=snapkv"],
    ],
)
def test_a_seed_is_taken_by_whatever_draws(compose: Callable[..., DictConfig], overrides: list[str]) -> None:
    assert check_config(compose("model=tiny", "budget=100", *overrides, "seed=1")).cfg["seed"] == 1


@pytest.mark.parametrize("setting", ["benchmark.seed=1", "benchmark.num_seeds=2"])
def test_a_benchmark_without_draws_has_no_seeds_of_its_own(compose: Callable[..., DictConfig], setting: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(setting)}: ") as caught:
        check_config(compose("model=tiny", "budget=100", "benchmark=needle_pyramidkv", setting))
    assert "\n" not in str(caught.value)


def test_seeds_of_a_method_that_draws_have_the_same_fixed_samples(compose: Callable[..., DictConfig]) -> None:
    """So they share a table, as on RULER."""
    words = ["model=tiny", "budget=100", "benchmark=needle_classic", "method=cam"]
    benchmarks = [check_config(compose(*words, f"seed={seed}")).benchmark for seed in (0, 3)]
    assert benchmarks[0].seed == benchmarks[1].seed == 0  # type: ignore[union-attr]
