"""Every command refuses every setting of `kvbench run` that it does not read, in one line that names the override."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from kvbench.common.paths import conf_dir
from kvbench.config.compose import check_read, one_run, parse
from kvbench.profile import __main__ as profile
from kvbench.profile import compose as profile_compose
from kvbench.profile import inspect_command
from kvbench.prompts import __main__ as prompts
from kvbench.run import log
from kvbench.run.heads import command as heads
from kvbench.run.layers import command as layers

TEXT = "prompt=The code of the safe is 7305."
MAINS: dict[str, Callable[[list[str]], int]] = {
    "prompts": prompts.main,
    "inspect": inspect_command.main,
    "inspect of a text": lambda words: inspect_command.main([TEXT, *words]),
    "heads": heads.main,
    "layers": layers.main,
    "profile": profile.main,
    "log": lambda words: log.main([str(Path(__file__).parent), *words]),
}
READS = {
    "prompts": {"model", "benchmark", "seed"},
    "inspect": {"model", "method", "budget", "benchmark", "seed", "threads", "paths.outputs"},
    "inspect of a text": {"model", "method", "budget", "seed", "threads", "paths.outputs"},
    "heads": {"model", "seed", "threads", "progress", "paths.outputs"},
    "layers": {"model", "benchmark", "limit", "seed", "threads", "progress", "paths.outputs"},
    "profile": {
        "model", "method", "budget", "kernel", "experiment", "seed", "threads", "retry_oom", "progress",
        "engine.graph", "engine.fused", "engine.cache", "paths.outputs",
    },
    "log": {"logger"},
}  # fmt: skip
LISTS = {
    "prompts": prompts._READ,
    "inspect": inspect_command._READ,
    "heads": heads._READ,
    "layers": layers._READ,
    "profile": profile_compose._READ,
}
CHOICES = {
    "model": "tiny",
    "method": "snapkv",
    "benchmark": "needle",
    "experiment": "quickstart",
    "logger": "wandb",
    "hydra/launcher": "basic",
    "hydra.verbose": "true",
}


def settings() -> Iterator[tuple[str, str]]:
    """Yield every group with an option, and every setting of conf/config.yaml with its default."""
    yield from CHOICES.items()
    for name, value in OmegaConf.load(conf_dir() / "config.yaml").items():
        if name in ("defaults", "hydra"):
            continue
        below = value.items() if isinstance(value, DictConfig) else [("", value)]
        for key, default in below:
            yield f"{name}.{key}".removesuffix("."), "null" if default is None else str(default).lower()


SETTINGS = dict(settings())


def test_the_list_of_settings_is_complete() -> None:
    groups = {
        str(next(iter(entry))).removeprefix("override ").removeprefix("optional ")
        for entry in OmegaConf.load(conf_dir() / "config.yaml").defaults
        if isinstance(entry, DictConfig)
    }
    assert {group for group in groups if not group.startswith("hydra/")} - {"local"} <= set(CHOICES)
    assert len(SETTINGS) >= 7 + 8 + 7 and set().union(*READS.values()) <= set(SETTINGS)


PAIRS = [(command, setting) for command in READS for setting in SETTINGS]


@pytest.mark.parametrize(("command", "setting"), [(c, s) for c, s in PAIRS if s in READS[c] and c in LISTS])
def test_a_setting_with_an_effect_is_taken(command: str, setting: str) -> None:
    check_read(parse([f"{setting}={SETTINGS[setting]}"]), command, LISTS[command])


@pytest.mark.parametrize(("command", "setting"), [(c, s) for c, s in PAIRS if s not in READS[c]])
def test_a_setting_without_effect_is_refused(
    command: str, setting: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    override = f"{setting}={SETTINGS[setting]}"
    assert MAINS[command]([override]) == 2
    error = capsys.readouterr().err
    named = "prompt=: takes the place of a benchmark's prompt" if command == "inspect of a text" else override
    named = named if setting == "benchmark" else override
    assert error.startswith(f"kvbench: {named}") and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budgt=3"], "budgt=3: no such setting. Did you mean 'budget'?"),
        (["engine.cach=masked"], "engine.cach=masked: no such setting."),
        (["+x=1"], "+x=1: no such setting. Known: "),
        (["model@engine=tiny"], "model@engine=tiny: kvbench inspect does not read it; leave it out"),
        (["engine={cache: masked}"], "engine={cache: masked}: kvbench inspect does not read it; leave it out"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: kvbench inspect does not read it; leave it out"),
        (["method=snapkv,h2o"], "method=snapkv,h2o: takes one value; lists are for kvbench -m"),
        (["model=tiny", "model.name=smollm2_135m"], "model.name=smollm2_135m: must be tiny, the name of conf/model/"),
        (["threads=${nothing}"], "threads=${nothing}: refers to ${nothing}, which is no setting"),
        (["benchmark.depths=[120]"], "benchmark.depths=120: give a whole number from 0 to 100"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_command.main(["model=tiny", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kvbench: {message}") and error.count("\n") == 1


def test_a_seed_that_changes_no_prompt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert prompts.main(["model=tiny", "benchmark=needle_classic", "seed=3"]) == 2
    line = "kvbench: seed=3: nothing of benchmark=needle_classic draws by it, so the result would be that of seed=0"
    assert capsys.readouterr().err.startswith(line)
    needle = ["model=tiny", "benchmark=needle", "benchmark.lengths=[100]"]
    shown = []
    for seed in ("0", "3"):
        assert prompts.main([*needle, f"seed={seed}"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] != shown[1]


def test_what_a_command_fixes_is_composed() -> None:
    cfg = one_run(["model=tiny", "seed=3"], "layers", layers._READ, ["method=prefixkv"])
    assert (cfg.model.name, cfg.method.name, cfg.seed, cfg.benchmark.seed) == ("tiny", "prefixkv", 3, 3)
    assert "hydra" not in cfg
