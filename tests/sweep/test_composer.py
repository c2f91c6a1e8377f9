"""The configurations of a sweep's jobs, each composed once."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from kvbench.sweep import composer


class CountingLoader:
    """A loader that counts the jobs it composes."""

    def __init__(self) -> None:
        self.composed: list[list[str]] = []

    def load_sweep_config(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        self.composed.append(overrides)
        return OmegaConf.create({"overrides": overrides, **cast("dict[str, Any]", master)})


def new_composer() -> tuple[composer.Composer, CountingLoader]:
    loader = CountingLoader()
    return composer.Composer(cast("ConfigLoader", loader), OmegaConf.create({"seed": 0})), loader


def test_a_job_that_was_looked_at_is_not_composed_again() -> None:
    jobs, loader = new_composer()
    looked = [jobs.look(["budget=1"]), jobs.look(["budget=2"]), jobs.look(["budget=1"])]
    assert looked[0] is looked[2] and looked[1].overrides == ["budget=2"]
    assert jobs.take(["budget=1"]) is looked[0]
    assert loader.composed == [["budget=1"], ["budget=2"]]


def test_a_taken_configuration_may_change_without_effect_on_the_next() -> None:
    jobs, loader = new_composer()
    jobs.take(["budget=1"]).seed = 5
    assert jobs.take(["budget=1"]).seed == 0 and len(loader.composed) == 2


def test_a_large_sweep_holds_a_limited_number_of_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer, "_MOST", 1)
    jobs, loader = new_composer()
    for job in (["budget=1"], ["budget=2"], ["budget=1"], ["budget=2"]):
        jobs.look(job)
    assert loader.composed == [["budget=1"], ["budget=2"], ["budget=2"]]
