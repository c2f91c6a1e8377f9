"""Helpers of the needle tests: a tokenizer that can be read, and the benchmark from its YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kvbench.benchmarks.needle import Needle

CONF = Path(__file__).resolve().parents[2] / "conf" / "benchmark"
SANDWICH = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"


class ToyTokenizer:
    """White space, full stops and the words between them are the tokens."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.ids.setdefault(piece, len(self.ids)) for piece in re.findall(r"\s+|\.|[^\s.]+", text)]

    def decode(self, token_ids: list[int]) -> str:
        pieces = list(self.ids)
        return "".join(pieces[index] for index in token_ids)


def settings(option: str) -> DictConfig:
    """Return what the YAML file of this option says, with all that it takes over from another."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(option)


def make(option: str = "needle", **changes: Any) -> Needle:
    """Build the benchmark as its YAML says, with changes as on the command line."""
    config = OmegaConf.create({"benchmark": settings(option)})
    config.merge_with({"benchmark": changes})
    assert set(changes) <= set(config.benchmark)
    return instantiate(config.benchmark)
