"""Jobs: what a composed configuration asks for, checked and identified without loading any weights.

A configuration is one job or, where its benchmark is a suite, one job per part of the suite.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench import config, models, prompts, store
from kvbench.benchmarks.base import Benchmark, ModelFacts, Suite, benchmarks_of
from kvbench.benchmarks.base import build as build_benchmark
from kvbench.common.paths import conf_dir
from kvbench.engine.variant import Variant
from kvbench.methods.allowance import allowed, check_bytes
from kvbench.methods.budgets import ByteShare, as_stored, check_budget
from kvbench.methods.dials import split_dials
from kvbench.methods.fitting import CacheShape
from kvbench.methods.load import build, load, method_identity
from kvbench.methods.method import Method
from kvbench.prompts.seeds import check_seed
from kvbench.run.memory import cache_shape

log = logging.getLogger(__name__)

_NOT_SHARED = ("method", "budget")


@dataclass(frozen=True)
class CheckedConfig:
    """A configuration without mistakes, as far as that can be told without the files of its model and benchmark.

    Attributes:
        cfg: the configuration as plain data.
        model, variant, benchmark: what its nodes describe; a variant is a method with its budget.
        method_identity: what the numbers depend on of the method.
    """

    cfg: dict[str, Any]
    model: models.ModelSpec
    variant: Variant
    benchmark: Benchmark | Suite
    method_identity: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Job:
    """One method under one budget on one benchmark.

    Attributes:
        cfg: the configuration as plain data.
        variant: the method with its budget.
        label: names of benchmark, model, method and budget, for folders and tables.
        identity: everything that the numbers depend on.
    """

    cfg: dict[str, Any]
    model: models.ModelSpec
    variant: Variant
    benchmark: Benchmark
    label: dict[str, str]
    identity: dict[str, Any]

    @cached_property
    def group(self) -> str:
        """Equal for jobs that share their prefills: they differ in method and budget alone."""
        shared = {k: v for k, v in self.cfg.items() if k not in _NOT_SHARED}
        return json.dumps([self.benchmark.name, shared], sort_keys=True, default=str)

    @cached_property
    def folder(self) -> Path:
        """Folder of the run."""
        return store.run_folder(self.cfg["paths"]["outputs"] + "/runs", self.label, self.identity)

    @cached_property
    def key(self) -> tuple[str, Path]:
        """Equal for jobs that are the same work: the same run, and the same shard of it."""
        return self.group, self.folder

    @cached_property
    def retry(self) -> frozenset[str]:
        """Statuses of samples without an answer that are computed again."""
        return frozenset(status for status in ("oom", "failed") if self.cfg[f"retry_{status}"])

    @property
    def is_dated(self) -> bool:
        """True if the prompts hold today's date, so that tomorrow the same configuration is another run."""
        return prompts.is_dated(self.model)

    @cached_property
    def question(self) -> str:
        """`aware` if the whole prompt is compressed, `agnostic` if its context alone is."""
        return "agnostic" if prompts.span_of(self.benchmark) == "context" else "aware"

    def variant_for(self, span: int, template: int = 0) -> Variant:
        """Return the variant for a prompt of which `span` tokens are compressed.

        A share of a very short prompt may be less than the sinks and window that the method always keeps. Then the
        prompt is answered from that many of its most recent tokens: the budget holds, and no sample is lost.

        Args:
            template: how many of these tokens the chat template writes before the text.

        Raises:
            ValueError: the budget is impossible on this prompt even so.
        """
        budget = self.variant.budget
        try:
            self.check_room(span, template)
        except ValueError:
            share = budget.share if isinstance(budget, ByteShare) else budget
            tokens = int(share * span + 1e-9) if isinstance(share, float) else 0
            if tokens < 1:
                raise
            return Variant(_most_recent(), budget if isinstance(budget, ByteShare) else tokens)
        return self.variant

    def check_room(self, span: int, template: int = 0) -> None:
        """Raise ValueError if the budget leaves no room on such a prompt; see `variant_for`."""
        method, budget = self.variant.method.with_template(template), self.variant.budget
        if isinstance(budget, ByteShare):
            allowed(method, budget, span, self.cache_shape)
        else:
            method.tokens(budget, span)

    @cached_property
    def cache_shape(self) -> CacheShape:
        """Sizes of the layers that are compressed, from the model's config alone."""
        return cache_shape(models.shape(self.model))


@cache
def _most_recent() -> Method:
    return load(conf_dir() / "method", "streaming_llm", sinks=0)


def prepare(cfg: DictConfig, choices: Mapping[str, str] | None = None) -> list[Job]:
    """Check a composed configuration and return its jobs. No weights are loaded; the data is read and checked.

    Args:
        choices: as `kvbench.config.check` takes them.

    Raises:
        ValueError: one line naming the override to change.
    """
    checked = check_config(cfg, choices)
    say_budgets([checked])
    return jobs_of(checked)


def check_config(cfg: DictConfig, choices: Mapping[str, str] | None = None) -> CheckedConfig:
    """Check a composed configuration without any file of its model or benchmark.

    A sweep does this for all its configurations first: a mistake comes before anything is fetched.

    Raises:
        ValueError: one line naming the override to change.
    """
    config.check(cfg, choices)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    spec = models.ModelSpec.from_node(plain["model"])
    spec.check_answers()
    variant, benchmark = variant_of(cfg), build_benchmark(cfg.benchmark)
    check_seed(cfg, benchmark, variant.method.draws)
    identity = method_identity(cfg.method, variant.method)
    return CheckedConfig({str(k): v for k, v in plain.items()}, spec, variant, benchmark, identity)


def variant_of(cfg: DictConfig) -> Variant:
    """Return the method of a checked configuration with its budget; the budget is None where none applies.

    Raises:
        ValueError: one line naming the override to change: a part refuses a dial, or the budget is impossible.
    """
    method = build(cfg.method, split_dials(config.defaults("method", cfg.method.name)))
    budget = check_budget(cfg.budget)
    check_bytes(method, budget)
    if method.promises is not None and isinstance(budget, int):
        method.check_room(budget)
        if method.promises == "kept":
            method.check_scored(budget)
    return Variant(method, budget if method.takes(budget) else None)


def say_budgets(checked: Iterable[CheckedConfig]) -> None:
    """Log the budgets that do not apply, in a line per method."""
    idle: dict[str, tuple[Method, dict[str, None]]] = {}
    for each in checked:
        method = each.variant.method
        if each.variant.budget is None:
            idle.setdefault(method.name, (method, {}))[1][str(each.cfg["budget"])] = None
    for method, budgets in idle.values():
        keeps = "decides by itself how many tokens stay" if method.evicts else "keeps every token"
        hint = "; one in bytes does, such as budget=0.5B" if method.fits_forms else ""
        log.info("%s %s: budget=%s does not apply to it%s", method.name, keeps, ",".join(budgets), hint)


def jobs_of(checked: CheckedConfig) -> list[Job]:
    """Return the jobs of a checked configuration. The data is read and checked.

    Raises:
        ValueError: one line naming the override to change.
    """
    cfg, spec, variant = checked.cfg, checked.model, checked.variant
    method, budget = variant.method, variant.budget
    facts, weights = prompts.facts(spec), spec.identity()
    jobs = []
    for benchmark in benchmarks_of(checked.benchmark, facts):
        identity = {
            "method": checked.method_identity,
            "budget": as_stored(budget),
            "model": {"name": spec.name, "weights": weights},
            "protocol": _protocol(benchmark, facts)
            | {"frame": prompts.frame_hash(spec), "decoding": models.decoding_of(spec)},
            "seed": cfg["seed"],
            "dtype": spec.dtype,
            "backend": f"{cfg['kernel']}-{cfg['engine']['cache']}",
        }
        label = {
            "benchmark": benchmark.name,
            "model": spec.label,
            "method": method.name,
            "budget": "full" if budget is None else str(budget),
        }
        jobs.append(Job(cfg, spec, variant, benchmark, label, identity))
    return jobs


def _protocol(benchmark: Benchmark, facts: ModelFacts) -> dict[str, Any]:
    """Return the benchmark's protocol together with how its text becomes ids."""
    protocol = dict(benchmark.protocol())
    rendering = asdict(prompts.resolve(benchmark.rendering, facts.max_length))
    if "dataset" in protocol:  # the parts of a suite may end their answers in different ways and still share a table
        protocol["dataset"] = protocol["dataset"] | {"stops": rendering.pop("stops")}
    return protocol | {
        "rendering": rendering,
        "prompts": prompts.VERSION,
        "chat_template": facts.chat_template,
        "chat_kwargs": dict(facts.chat_kwargs),
    }
