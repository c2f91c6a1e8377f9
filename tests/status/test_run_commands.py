"""The command of a run in no plan, and what a printed command must not do."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kvbench import store
from kvbench.status.__main__ import main
from kvbench.status.survey import survey
from tests.helpers.store_runs import every, make, open_run, record


@pytest.mark.parametrize(
    "words",
    [
        ["model=tiny"],
        ["model=tiny", "method=fullkv", "seed=3", "engine.cache=masked", "benchmark.num_seeds=2"],
        ["model=tiny", "method=snapkv", "budget=96", "method.window=8", "+model.hints.kernel_size=9", "limit=2"],
        ["benchmark=needle_agnostic", "benchmark.lengths=[300,400]", "benchmark.stop=['\\n',\"a'b\"]"],
        ["model=tiny", r'benchmark.needle=" Say \"{key}\", \\ or: {value}\\"', "benchmark.answer_prefix='null'"],
        ["model=local", "model.path=a b/c", "+model.chat_kwargs.x=1", "budget=1.0", "benchmark=ruler"],
    ],
)
def test_the_command_of_a_run_makes_that_run(tmp_path: Path, compose: Any, words: list[str], monkeypatch: Any) -> None:
    """Its overrides compose to the configuration that is stored, whatever was set, quotes and all."""
    cfg = compose(*words, f"paths.outputs={tmp_path}/my outputs")
    outputs = tmp_path / "my outputs"
    with open_run(outputs / "runs", config=cfg) as run:
        run.append(record("a"))
    for where in (tmp_path, Path("/")):
        monkeypatch.chdir(where)
        [command] = survey([outputs]).commands.values()
        assert command.startswith("python -m kvbench model=")
        again = compose(*shlex.split(command)[3:])
        first, second = (OmegaConf.to_container(c, resolve=True) for c in (cfg, again))
        assert isinstance(first, dict) and isinstance(second, dict)
        for node in (first, second):
            node.pop("limit")
            node["paths"]["outputs"] = str(where / node["paths"]["outputs"])
        assert first | {"paths": second["paths"]} == second
        assert Path(second["paths"]["outputs"]) == outputs


CHANGES = [
    ("method", ["method=h2o"]),
    ("method", ["method.window=9"]),
    ("budget", ["budget=96"]),
    ("model", ["model.seed=1"]),
    ("protocol", ["benchmark.depths=[0]"]),
    ("seed", ["seed=3"]),
    ("dtype", ["model.dtype=bfloat16"]),
    ("backend", ["kernel=torch"]),
    ("backend", ["engine.cache=masked"]),
]


def identity_of(compose: Any, *words: str) -> dict[str, Any]:
    from kvbench.run.jobs import prepare

    (job,) = prepare(compose("model=tiny", "method=snapkv", "budget=100", *words))
    return job.identity


def test_all_that_an_identity_holds_is_changed_below(compose: Any) -> None:
    assert {key for key, _ in CHANGES} == identity_of(compose).keys()


@pytest.mark.parametrize(("key", "words"), CHANGES)
def test_the_command_of_a_run_has_all_that_its_identity_holds(
    tmp_path: Path, compose: Any, key: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    identity = identity_of(compose, *words)
    assert identity[key] != identity_of(compose)[key]
    cfg = compose("model=tiny", "method=snapkv", "budget=100", *words)
    with open_run(tmp_path / "outputs" / "runs", config=cfg) as run:
        run.append(record("a"))
    [command] = survey([tmp_path / "outputs"]).commands.values()
    assert identity_of(compose, *shlex.split(command)[3:]) == identity


def test_a_kind_of_model_that_has_another_name_now_is_left_out(tmp_path: Path, compose: Any) -> None:
    """A stored kind that can still be chosen is kept: it may differ from that of the preset."""
    for kind, expected in (("smollm2", "python -m kvbench model=smollm2_135m method="), ("hub", "model.kind=hub")):
        cfg = compose("model=smollm2_135m")
        cfg.model.kind = kind
        with open_run(tmp_path / kind / "runs", config=cfg) as run:
            run.append(record("a"))
        [command] = survey([tmp_path / kind]).commands.values()
        assert expected in command and ("model.kind" in command) == (kind == "hub")


def test_a_run_of_an_unknown_make_has_no_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make(tmp_path, "1", "a")
    assert main([str(tmp_path)]) == 1
    assert "To resume, issue the command that made them again\n" in capsys.readouterr().out


def test_a_resume_command_never_allows_code_of_a_model(
    tmp_path: Path, compose: Any, capsys: pytest.CaptureFixture
) -> None:
    cfg = compose("model=qwen3_8b", "model.path=a/b", "model.trust_remote_code=true")
    with open_run(tmp_path / "runs", config=cfg) as run:
        run.append(record("a"))
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "model=qwen3_8b" in out and "model.path=a/b" in out and "trust_remote_code" not in out
    store.write_plan(tmp_path, "kvbench model=hub model.trust_remote_code=true", every([run.path]))
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "    kvbench model=hub\n" in out and "trust_remote_code=true" not in out
    assert main([str(tmp_path), "--json"]) == 1
    assert "trust_remote_code" not in capsys.readouterr().out


def test_terminal_escapes_in_plans_and_errors_are_shown_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = make(tmp_path, "1", "a", RuntimeError("\x1b[2Jboom \u202e"))
    store.write_plan(tmp_path, "kvbench budget=\x1b[2J", every([path]))
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\u202e") and "\\x1b[2Jboom" in out
