"""Jobs: what a composed configuration asks for, checked and identified without loading any weights.

A configuration is one job, or, where its benchmark is a suite, one per part of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from kvbench import config, models, prompts, store
from kvbench.benchmarks.base import Benchmark, ModelFacts, Suite, benchmarks_of
from kvbench.engine.variant import Variant
from kvbench.methods.dials import split_dials
from kvbench.methods.load import build, load, method_identity
from kvbench.methods.method import Method
from kvbench.paths import conf_dir

log = logging.getLogger(__name__)

_NOT_SHARED = ("method", "budget")


@dataclass
class Job:
    """One method under one budget on one benchmark, checked, and what it is in the store."""

    cfg: dict[str, Any]
    model: models.ModelSpec
    variant: Variant
    benchmark: Benchmark
    label: dict[str, str]
    identity: dict[str, Any]

    @property
    def group(self) -> str:
        """Jobs of equal group share one plan: they differ only in method and budget."""
        shared = {k: v for k, v in self.cfg.items() if k not in _NOT_SHARED}
        return json.dumps([self.benchmark.name, shared], sort_keys=True, default=str)

    @property
    def key(self) -> tuple[str, Path]:
        """Equal for jobs that are the same work: the same run, and the same shard of it."""
        return self.group, self.folder

    def variant_for(self, span: int) -> Variant:
        """The variant on a prompt of `span` tokens.

        A share of a very short prompt may be less than the sinks and window that the method always keeps. Then the
        prompt is answered from so many most recent tokens: the budget holds, and no sample is lost.

        Raises:
            ValueError: the budget is impossible on this prompt even so.
        """
        try:
            self.variant.method.tokens(self.variant.budget, span)
        except ValueError:
            tokens = int(self.variant.budget * span + 1e-9) if isinstance(self.variant.budget, float) else 0
            if tokens < 1:
                raise
            return Variant(_most_recent(), tokens)
        return self.variant

    @property
    def folder(self) -> Path:
        return store.run_folder(self.cfg["paths"]["outputs"] + "/runs", self.label, self.identity)


def prepare(cfg: DictConfig, choices: Mapping[str, str] | None = None) -> list[Job]:
    """Check a composed configuration and say what it asks for, without loading weights. The data is read and checked.

    Raises:
        ValueError: one line naming the override to change.
    """
    plain, spec, method, made = settle(cfg, choices)
    budget = cfg.budget if method.evicts else None
    if not method.evicts:
        log.info("%s keeps every token: budget=%s does not apply to it", method.name, cfg.budget)
    facts, weights = prompts.facts(spec), spec.identity()
    jobs = []
    for benchmark in benchmarks_of(made, facts):
        identity = {
            "method": method_identity(plain["method"]),
            "budget": budget,
            "model": {"name": spec.name, "weights": weights},
            "protocol": _protocol(benchmark, facts) | {"frame": prompts.frame_hash(spec)},
            "seed": plain["seed"],
            "dtype": spec.dtype,
            "backend": f"{plain['kernel']}-{plain['engine']['cache']}",
        }
        label = {
            "benchmark": benchmark.name,
            "model": spec.label,
            "method": method.name,
            "budget": "full" if budget is None else str(budget),
        }
        jobs.append(Job(plain, spec, Variant(method, budget), benchmark, label, identity))
    return jobs


def settle(
    cfg: DictConfig, choices: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], models.ModelSpec, Method, Benchmark | Suite]:
    """All of `prepare` that needs no file of a model or benchmark, so that mistakes come before anything is fetched.

    Returns the configuration as plain data, the model's spec, the method, and the benchmark.
    """
    config.check(cfg, choices)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    spec = models.ModelSpec.from_node(plain["model"])
    spec.check_answers()
    method = build(cfg.method, split_dials(config.defaults("method", cfg.method.name)))
    if method.evicts and isinstance(cfg.budget, int):
        method.check_room(cfg.budget)
    return {str(k): v for k, v in plain.items()}, spec, method, _instantiate(cfg.benchmark)


def benchmarks(node: DictConfig, facts: ModelFacts) -> Sequence[Benchmark]:
    """Return the benchmarks of a `benchmark` node: itself, or those of a suite. Raises ValueError for bad settings."""
    return benchmarks_of(_instantiate(node), facts)


def _instantiate(node: DictConfig) -> Benchmark | Suite:
    try:
        made: Benchmark | Suite = hydra.utils.instantiate(node)
    except InstantiationException as error:  # the benchmark's own message says which setting is wrong
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return made


def _protocol(benchmark: Benchmark, facts: ModelFacts) -> dict[str, Any]:
    """The benchmark's protocol with the way its text becomes ids."""
    protocol = dict(benchmark.protocol())
    rendering = asdict(prompts.resolve(benchmark.rendering, facts.max_length))
    if "dataset" in protocol:  # a suite's parts may end their answers in different ways and still share a table
        protocol["dataset"] = protocol["dataset"] | {"stops": rendering.pop("stops")}
    return protocol | {
        "rendering": rendering,
        "prompts": prompts.VERSION,
        "chat_template": facts.chat_template,
        "chat_kwargs": dict(facts.chat_kwargs),
    }


@cache
def _most_recent() -> Method:
    return load(conf_dir() / "method", "streaming_llm", sinks=0)
