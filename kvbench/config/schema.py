"""The types of the configuration's root, which Hydra checks; groups are typed by the classes they name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

GROUPS = ("model", "method", "benchmark")
HOST_KERNELS = ("cpu", "sdpa", "torch")  # they need the host in every step
KERNELS = ("auto", "cuda", "flash_attn", *HOST_KERNELS)


@dataclass
class EngineConfig:
    """The `engine` node: how rows are batched and where their keys and values are stored."""

    graph: str = "auto"
    fused: str = "auto"
    cache: str = "ragged"
    max_rows: int = 64
    max_prompts: int = 8


@dataclass
class SaveConfig:
    """The `save` node: what is stored next to the records."""

    kept: bool = False


@dataclass
class PathsConfig:
    """The `paths` node: where results are written."""

    outputs: str = "outputs"


@dataclass
class Config:
    """The root node. The three groups are checked against the classes that their YAML files name."""

    model: Any = MISSING
    method: Any = MISSING
    benchmark: Any = MISSING
    budget: Any = MISSING
    seed: int = 0
    limit: int | None = None
    shard: str | None = None
    kernel: str = "auto"
    retry_oom: bool = False
    retry_failed: bool = False
    threads: int | None = None
    progress: bool = True
    engine: EngineConfig = field(default_factory=EngineConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    logger: dict[str, Any] = field(default_factory=dict)


NODES = {"engine": EngineConfig, "save": SaveConfig, "paths": PathsConfig}


def register() -> None:
    """Tell Hydra the types; call before composing."""
    ConfigStore.instance().store(name="kvbench_schema", node=Config, provider="kvbench")
