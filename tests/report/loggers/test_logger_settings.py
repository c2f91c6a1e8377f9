"""The node `logger`: what can be chosen, and mistakes in it as one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from kvbench import config
from kvbench.common.loggers import TrackioSettings, WandbSettings, settings_of_loggers
from kvbench.config.combinations import combinations
from kvbench.config.compose import compose_one, parse

Compose = Callable[..., DictConfig]


def loggers(cfg: DictConfig) -> dict[str, object]:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(cfg.logger)
    assert isinstance(node, dict)
    return {**settings_of_loggers({str(name): node[name] for name in node})}


def test_nothing_is_logged_by_default(compose: Compose) -> None:
    assert loggers(compose("model=tiny")) == {}


def test_one_or_several_are_chosen(compose: Compose) -> None:
    assert loggers(compose("logger=wandb")) == {"wandb": WandbSettings()}
    both = loggers(compose("logger=[wandb,trackio]", "logger.wandb.project=p", "logger.trackio.group=g"))
    assert both == {"wandb": WandbSettings(project="p"), "trackio": TrackioSettings(group="g")}
    assert loggers(compose("logger=[none]")) == {}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["logger=wand"], "logger=wand: no such logger. Did you mean 'wandb'?"),
        (["logger.wandb.project=x"], "nothing is logged to wandb; add logger=wandb"),
        (["logger=wandb", "logger.wandb.projct=x"], "no such setting. Did you mean 'project'?"),
        (["logger.neptune.project=x"], "no such logger. Known: trackio, wandb."),
    ],
)
def test_an_unknown_name_is_one_line(overrides: list[str], line: str) -> None:
    config.register()
    with pytest.raises(ValueError) as caught:
        compose_one(overrides)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("logger.wandb.mode=on", "logger.wandb.mode=on: must be one of auto, online, offline"),
        ("logger.wandb.project=a/b", "logger.wandb.project=a/b: use at most 64 letters"),
        ("logger.wandb.tags=3", "logger.wandb.tags=3: must be a list of texts, such as [a, b]"),
        ("logger.wandb.tags=['']", "must have 1 to 64 printable characters"),
        ("+logger.x.y=3", "no such logger"),
        ("+logger.wandb.api_key=S3CRET", "logger.wandb.api_key: no such setting"),
        ("logger.wandb.project=${oc.env:HOME}", "oc.env may not be used here"),
    ],
)
def test_a_wrong_value_is_one_line(compose: Compose, override: str, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        config.check(compose("model=tiny", "logger=wandb", override))
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert "S3CRET" not in str(caught.value), "a key typed by mistake is not repeated"


def test_every_setting_passes_the_check(compose: Compose) -> None:
    settings = ["project=p", "entity=e", "group=g", "tags=[a,b]", "mode=offline", "report=false"]
    config.check(compose("model=tiny", "logger=wandb", *(f"logger.wandb.{setting}" for setting in settings)))


def test_a_sweep_over_loggers_is_refused() -> None:
    """Its jobs would be the same runs, computed at the same time."""
    with pytest.raises(ValueError, match=r"write logger=\[wandb,trackio\]"):
        list(combinations(parse(["logger=wandb,trackio", "budget=0.1,0.2"])))
    with pytest.raises(ValueError, match="give one value"):
        list(combinations(parse(["logger.wandb.project=a,b"])))
    jobs = list(combinations(parse(["logger=[wandb,trackio]", "budget=0.1,0.2"])))
    assert jobs == [["logger=[wandb,trackio]", f"budget={budget}"] for budget in (0.1, 0.2)]


def test_loggers_are_no_part_of_the_identity(compose: Compose) -> None:
    from kvbench.run.jobs import prepare

    (plain,) = prepare(compose("model=tiny", "benchmark=needle_1k"))
    (logged,) = prepare(compose("model=tiny", "benchmark=needle_1k", "logger=[wandb,trackio]"))
    assert plain.folder == logged.folder
