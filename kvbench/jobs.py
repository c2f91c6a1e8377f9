"""A job: one composed configuration, checked and identified without loading any weights."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

import kvbench_kernels
from kvbench import __version__, config, models, prompts, store
from kvbench.benchmarks.base import Benchmark
from kvbench.engine.variant import Variant
from kvbench.methods.load import build, split_dials

log = logging.getLogger(__name__)

_VERSIONED = ("torch", "transformers", "hydra-core", "rouge_score")
_SOURCES = ("methods", "cache", "engine", "benchmarks", "metrics", "models")
_NOT_SHARED = ("method", "budget")


@dataclass
class Job:
    """One configuration, checked, and what it is in the store."""

    cfg: dict[str, Any]
    variant: Variant
    benchmark: Benchmark
    label: dict[str, str]
    identity: dict[str, Any]

    @property
    def group(self) -> str:
        """Jobs of equal group share one plan: they differ only in method and budget."""
        return json.dumps({k: v for k, v in self.cfg.items() if k not in _NOT_SHARED}, sort_keys=True, default=str)

    @property
    def folder(self) -> Path:
        return store.run_folder(self.cfg["paths"]["outputs"] + "/runs", self.label, self.identity)


def prepare(cfg: DictConfig, choices: Mapping[str, str] | None = None) -> Job:
    """Check a composed configuration and say what it is, without loading weights.

    Raises:
        ValueError: one line naming the override to change.
    """
    config.check(cfg, choices)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    models.check(plain["model"])
    method = build(cfg.method, split_dials(config.defaults("method", cfg.method.name)))
    budget = cfg.budget if method.evicts else None
    if not method.evicts:
        log.info("%s keeps every token: budget=%s does not apply to it", method.name, cfg.budget)
    benchmark = _benchmark(cfg.benchmark)
    identity = {
        "method": plain["method"],
        "budget": budget,
        "model": {"name": plain["model"]["name"], "weights": models.identity(plain["model"])},
        "protocol": benchmark.protocol()
        | {
            "prompts": prompts.VERSION,
            "chat_template": plain["model"]["chat_template"],
            "chat_kwargs": plain["model"]["chat_kwargs"],
        },
        "seed": plain["seed"],
        "dtype": plain["model"]["dtype"],
        "backend": f"torch-{plain['engine']['cache']}",
    }
    label = {
        "benchmark": plain["benchmark"]["name"],
        "model": plain["model"]["name"],
        "method": method.name,
        "budget": "full" if budget is None else str(budget),
    }
    return Job({str(k): v for k, v in plain.items()}, Variant(method, budget), benchmark, label, identity)


def _benchmark(node: DictConfig) -> Benchmark:
    try:
        benchmark: Benchmark = hydra.utils.instantiate(node)
    except InstantiationException as error:  # the benchmark's own message says which setting is wrong
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return benchmark


@cache
def versions() -> dict[str, str]:
    """Versions of what makes the numbers; `code` is a hash of our own sources."""
    found = {"kvbench": __version__, "code": _code()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _code() -> str:
    """A hash of the sources that numbers depend on, so that a changed method does not pass as the one recorded."""
    package = Path(__file__).parent
    files = [path for part in _SOURCES for path in sorted((package / part).glob("*.py"))]
    files += [
        package / "prompts.py",
        package / "encoding.py",
        *sorted(Path(kvbench_kernels.__file__).parent.glob("*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
