"""An experiment file from elsewhere runs no code, reads no secret, and writes nowhere but to the outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from kvbench import config
from kvbench.config.combinations import MOST_JOBS, combinations, deferred, fitting, typed
from kvbench.config.compose import inspect, parse
from kvbench.sweep.sweeper import FusedSweeper
from tests.helpers.own_conf import own_conf


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of conf/ in which a test may write an experiment."""
    folder = own_conf(tmp_path / "conf", monkeypatch)
    config.register()
    GlobalHydra.instance().clear()
    yield folder


CALL = "{_target_: subprocess.check_call, args: [touch, %s]}"


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {callbacks: {x: CALL}}",
        "hydra: {launcher: CALL}",
        "hydra: {sweeper: CALL}",
        "hydra: {job_logging: {handlers: {x: {'()': subprocess.check_call, args: [touch, FILE]}}}}",
        "hydra: {hydra_logging: {formatters: {x: {class: antigravity}}}}",
        "hydra: {job: {env_set: {LD_PRELOAD: FILE}}}",
        "hydra: {job: {env_copy: [HOME]}}",
        "hydra: {job: {env_copy: [NO_SUCH_VARIABLE]}}",
        "hydra: {searchpath: ['pkg://antigravity']}",
        "hydra: {run: {dir: FILE}}",
        "hydra: {sweep: {dir: FILE}}",
        "hydra: {job: {name: ../../FILE}}",
        "hydra: {job: {chdir: true}}",
        "hydra: {output_subdir: FILE}",
        "hydra: {sweeper: {params: {+hydra.callbacks.x: 1}}}",
        "hydra: {callbacks: [CALL]}",
        "hydra: {sweeper: {params: {x: CALL}}}",
        "hydra: {sweeper: {params: CALL}}",
        "hydra: {sweeper: {params: {budget: [1, CALL]}}}",
        "hydra: {sweeper: {max_batch_size: CALL}}",
        "hydra: {sweeper: {_target_: subprocess.check_call}}",
        "hydra: {searchpath: ['file://FILE']}",
        "hydra: {verbose: CALL}",
        "hydra: {mode: CALL}",
        "hydra: {help: {template: '${oc.env:HOME}'}}",
        "hydra: {hydra_help: {template: x}}",
        "hydra: {sweep: {subdir: ../../FILE}}",
        "hydra: {job: {id: ../../FILE}}",
        "hydra: {runtime: {output_dir: FILE}}",
        "hydra: {overrides: {hydra: ['hydra.callbacks.x=1']}}",
        "hydra: {overrides: {task: ['budget=1']}}",
        "hydra: null",
        "defaults: [/method@hydra.callbacks.x: snapkv]",
        "defaults: [evil]",
    ],
)
def test_an_experiment_cannot_tell_hydra_to_run_or_write_anything(text: str, conf: Path, tmp_path: Path) -> None:
    file = tmp_path / "touched"
    content = text.replace("CALL", CALL % file).replace("FILE", str(file))
    (conf / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(ValueError) as caught:
        list_jobs(inspect(["experiment=evil", "model=tiny"]))
    assert "\n" not in str(caught.value)
    assert not file.exists()


@pytest.mark.parametrize("group", ["launcher", "sweeper", "job_logging", "hydra_logging"])
@pytest.mark.parametrize("option", ["default", "x"])
def test_an_experiment_cannot_choose_an_option_of_hydra(group: str, option: str, conf: Path) -> None:
    """Hydra ignores such a choice, because that of conf/config.yaml comes first: the message says what to type."""
    (conf / "hydra" / group / "x.yaml").write_text("_target_: subprocess.check_call\n")
    text = f"# @package _global_\ndefaults: [override /hydra/{group}: {option}]\n"
    (conf / "experiment" / "evil.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"cannot choose hydra/{group}; type hydra/{group}={option} on the command"):
        inspect(["experiment=evil", "model=tiny"])


@pytest.mark.parametrize(
    "text",
    [
        "{setup: ['touch FILE']}",
        "{extra: {wrap: 'touch FILE'}}",
        "{partition: CALL}",
        "{partition: [CALL]}",
        "{partition: {x: [CALL]}}",
        "{_target_: subprocess.check_call}",
    ],
)
def test_an_experiment_cannot_add_code_to_a_launcher(text: str, conf: Path, tmp_path: Path) -> None:
    content = text.replace("CALL", CALL % (tmp_path / "touched"))
    (conf / "experiment" / "evil.yaml").write_text(f"# @package _global_\nhydra: {{launcher: {content}}}\n")
    with pytest.raises(ValueError, match=r"^hydra\.launcher\."):
        inspect(["experiment=evil", "model=tiny", "hydra/launcher=fused_slurm"])


@pytest.mark.parametrize("place", ["local/default.yaml", "experiment/mine.yaml"])
def test_a_setting_of_another_launcher_is_one_line(place: str, conf: Path) -> None:
    """It used to end the sweep with a TypeError, after Hydra had created its folders."""
    (conf / place).parent.mkdir(exist_ok=True)
    (conf / place).write_text("# @package _global_\nhydra: {launcher: {partition: gpu}}\n")
    words = ["model=tiny", *(["experiment=mine"] if "mine" in place else [])]
    line = r"^hydra\.launcher\.partition=gpu: launcher=fused has no such setting; leave it out, or type launcher=NAME"
    with pytest.raises(ValueError, match=line):
        inspect(words)
    assert inspect([*words, "hydra/launcher=fused_slurm"]).hydra.launcher.partition == "gpu"


def test_multirun_yaml_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a setting that is named like a secret nor the value of an environment variable is written down."""
    monkeypatch.setenv("SCRATCH", str(tmp_path / "V4RIABLE"))
    config.register()
    GlobalHydra.instance().clear()
    secret = "+model.chat_kwargs.hf_token=S3CRET"
    composed = inspect(
        ["model=tiny", secret, "paths.outputs=${oc.env:SCRATCH}/out", f"hydra.sweep.dir={tmp_path}"],
    )
    sweeper = FusedSweeper()
    sweeper.config = composed
    sweeper._write_down([["model=tiny", secret, "budget=1"]])
    text = (tmp_path / "multirun.yaml").read_text()
    assert "S3CRET" not in text and "V4RIABLE" not in text
    assert "budget=1" in text and "${oc.env:SCRATCH}/out" in text


def list_jobs(composed: object) -> None:
    """Read the lists of an experiment as the sweeper does."""
    params = composed.hydra.sweeper.params or {}  # type: ignore[attr-defined]
    list(combinations(parse([f"{key}={value}" for key, value in params.items()])))


@pytest.mark.parametrize(
    "text",
    [
        "benchmark: {_target_: subprocess.check_call}",
        "benchmark: {stop: [{_target_: subprocess.check_call, args: [touch, FILE]}]}",
        "benchmark: {haystack: {_target_: subprocess.check_call, args: [touch, FILE]}}",
        "method: {score: {_target_: subprocess.check_call, args: [touch, FILE]}}",
        "method: {window: {_target_: subprocess.check_call, args: [touch, FILE]}}",
        "model: {chat_kwargs: {x: '${oc.env:HOME}'}}",
        "benchmark: {preamble: '${oc.env:HOME}'}",
        "benchmark: {haystack: '${oc.env:HF_TOKEN,x}'}",
        "paths: {outputs: '${oc.env:AWS_SECRET_ACCESS_KEY,x}'}",
        "seed: '${hydra:runtime.cwd}'",
        "benchmark: {preamble: '${${oc.select:x,oc.env}:HOME}'}",
    ],
)
def test_an_experiment_cannot_name_code_or_secrets(text: str, conf: Path, tmp_path: Path) -> None:
    file = tmp_path / "touched"
    (conf / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{text.replace('FILE', str(file))}\n")
    with pytest.raises(ValueError) as caught:
        composed = inspect(["experiment=evil", "model=tiny", "method=snapkv"])
        choices = {str(key): str(value) for key, value in composed.hydra.runtime.choices.items()}
        config.check(without_hydra(composed), choices)
    assert "\n" not in str(caught.value)
    assert not file.exists()


def without_hydra(composed: object) -> object:
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])  # type: ignore


def test_folders_may_come_from_the_environment(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    composed = inspect(["model=tiny", "paths.outputs=${oc.env:SCRATCH}/out"])
    config.check(without_hydra(composed))  # type: ignore[arg-type]
    assert composed.paths.outputs == f"{tmp_path}/out"


def test_the_command_refuses_a_callback_before_hydra_calls_it(tmp_path: Path) -> None:
    file = tmp_path / "touched"
    node = f"+hydra.callbacks.x={{_target_: subprocess.check_call, args: [touch, {file}]}}"
    words = [sys.executable, "-m", "kvbench", "model=tiny", node]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not file.exists()
    assert re.fullmatch(r"kvbench: \+hydra\.callbacks\.x=.*: kvbench does not use this setting.*\n", done.stderr)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget=range(5,1)", "stands for no value"),
        ("budget=range(1,100000000)", f"more than {MOST_JOBS} jobs"),
        ("budget=shuffle(range(1,100000000))", f"more than {MOST_JOBS} jobs"),
        ("budget=range(0,1,0)", "a range needs a finite start"),
        ("budget=interval(0,1)", "give a list of values"),
        ("budget=range(0,1,1e-9)", f"more than {MOST_JOBS} jobs"),
    ],
)
def test_a_list_is_counted_before_it_is_expanded(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(combinations(parse([override])))


def test_a_job_has_the_dials_of_its_method() -> None:
    """A method without a dial is one job, not one per value; a dial that no method has stays, to be refused."""
    listed = ["method=snapkv,tova,kivi", "method.window=8,16", "budget=64", "method.bitz=2"]
    jobs = fitting(list(combinations(parse(listed))))
    rest = ["budget=64", "method.bitz=2"]
    assert jobs == [
        ["method=snapkv", "method.window=8", *rest],
        ["method=snapkv", "method.window=16", *rest],
        ["method=tova", *rest],
        ["method=kivi", *rest],
    ]
    alone = [["method=tova", "method.window=8"], ["method=tova", "method.window=16"]]
    assert fitting(alone) == alone and fitting([["budget=1"], ["budget=1"]]) == [["budget=1"]]
    assert fitting([["method=snapkv", "method.window=8"], ["method=nonsense", "budget=1"]])[1][0] == "method=nonsense"


def test_a_command_is_shown_as_it_was_typed() -> None:
    words = ["method=tova,scope", "method.buffer=2", "budget=0.1,0.2", "method.kernel_size='a b'"]
    assert typed(deferred(parse(words))) == words
    lists = ["method=tova,scope", "method.buffer=choice(1,2)", "method.x=[1,2]"]
    assert typed(lists) == lists


def test_a_pattern_may_stand_in_a_list(conf: Path) -> None:
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()

        def jobs(override: str) -> list[str]:
            return [line for (line,) in combinations(parse([override], loader))]

        names = ["method=ada_pyramidkv", "method=ada_snapkv"]
        assert jobs("method=glob(ada_*)") == names
        assert jobs("method=tova,glob(ada_*),think+kivi,ada_snapkv") == ["method=tova", *names, "method=think+kivi"]
        assert len(jobs("method=glob(*),think+kivi")) == len(config.options("method")) + 1
        for override in ("method=glob(zzz*),tova", "budget=glob(*),64"):
            with pytest.raises(ValueError, match=rf"^{re.escape(override)}: a pattern in it stands for no value$"):
                jobs(override)


def test_every_combination_is_a_job_and_the_last_of_equal_keys_counts() -> None:
    jobs = list(combinations(parse(["method=a,b", "budget=range(1,3)", "seed=1", "budget=0.5,0.25"])))
    assert jobs == [[f"method={m}", f"budget={b}", "seed=1"] for m in "ab" for b in ("0.5", "0.25")]
