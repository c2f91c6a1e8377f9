"""Drop ratios of a model's layers: each calibration prompt is prefilled once, and on disk before the next begins.

Shape suffixes: L layers, T tokens.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import Tensor
from tqdm.auto import tqdm

from kvbench import prompts
from kvbench.benchmarks.base import Tokenizer
from kvbench.common.paths import conf_dir
from kvbench.engine.decode import stream
from kvbench.engine.variant import Request, Variant, span_tokens
from kvbench.methods.base import LayerBudget
from kvbench.methods.layer_profile import drop_ratios
from kvbench.methods.layers.cumulative_mass import CumulativeMass
from kvbench.methods.load import load
from kvbench.models import Loaded
from kvbench.models.cache import ModelCache
from kvbench.prompts import Prompt
from kvbench.run.asset import RecordFolder, name_of
from kvbench.run.jobs import Job
from kvbench.run.versions import versions
from kvbench.store.validate import check

log = logging.getLogger(__name__)

SHARES = tuple(tenth / 10 for tenth in range(10))  # of a prompt that leave, as in the reference's files
_SHORTEST = 20  # tokens of a prompt; the search needs that many
_DIGITS = 6  # of a ratio in the profile


class PromptRecord(TypedDict):
    """One prompt: its tokens, and the drop ratio of every layer for each of `SHARES`."""

    id: str
    tokens: int
    ratios: list[list[float]]


@dataclass(frozen=True)
class _Recorder(CumulativeMass):
    """Layer budgets of a single use: they keep the importance of all layers of a prompt."""

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def __call__(self, budget: LayerBudget) -> list[int]:
        """Keep the importance [L, T], and give every layer the same."""
        self.seen.append(budget.stacked())
        return [budget.tokens * budget.heads] * budget.layers


def compute(jobs: Sequence[Job], outputs: str, progress: bool = True) -> Path:
    """Prefill the prompts that have no record yet, and write the profile. Returns its path.

    Args:
        jobs: the benchmark, or the parts of a suite, whose prompts calibrate.

    Raises:
        ValueError: the model cannot take a prompt; one line.
    """
    spec, cfg, model_cache = jobs[0].model, jobs[0].cfg, ModelCache()
    setting: dict[str, Any] = {
        "model": {"name": spec.label, "weights": spec.identity(), "dtype": spec.dtype},
        "protocols": {job.benchmark.name: job.identity["protocol"] for job in jobs},
        "seed": cfg["seed"],
        "versions": {name: number for name, number in versions().items() if name != "method"},
    }
    label = spec.label.rpartition("/")[2]
    folder = Path(outputs).absolute() / "layers" / name_of(setting, label)
    rendered = list(_prompts(jobs, model_cache))
    with RecordFolder.open(folder, setting, _as_record) as asset:
        todo = [item for item in rendered if item[0] not in asset.records]
        log.info("%s: %d of %d prompts to prefill (%s)", spec.label, len(todo), len(rendered), folder)
        loaded = model_cache.model(spec) if todo else None
        for name, prompt, question in tqdm(todo, unit="prompt", desc="layers", disable=not (todo and progress)):
            assert loaded is not None
            mass_LT = _importance(loaded, name, prompt, question)
            ratios = [drop_ratios(mass_LT, share, protected=2) for share in SHARES]  # the first token and the last
            asset.append({"id": name, "tokens": mass_LT.shape[1], "ratios": ratios})
        records = [asset.records[name] for name, _, _ in rendered]
        tokens = sum(record["tokens"] for record in records)
        return asset.write(label, _profile(records), prompts=len(records), tokens=tokens)


def _prompts(jobs: Sequence[Job], model_cache: ModelCache) -> Iterator[tuple[str, Prompt, str]]:
    """Yield every calibration prompt with a name, and what of it is compressed: see `Job.question`.

    Raises:
        ValueError: a prompt is too short, or does not fit the model.
    """
    for job in jobs:
        tokenizer = model_cache.tokenizer(job.model)
        render = prompts.renderer(job.model, tokenizer, job.benchmark)
        for sample in job.benchmark.samples(cast("Tokenizer", tokenizer))[: job.cfg["limit"]]:
            prompt, name = render(sample), f"{job.benchmark.name}/{sample.id}"
            if span_tokens(prompt, job.question) < _SHORTEST:
                raise ValueError(f"benchmark={job.benchmark.name}: the prompt {name} has less than {_SHORTEST} tokens")
            yield name, prompt, job.question


def _importance(loaded: Loaded, name: str, prompt: Prompt, question: str) -> Tensor:
    """Return the attention [L, T] that every token gets, mean over heads. Raises ValueError if the prompt fails."""
    recorder = _Recorder()
    method = load(conf_dir() / "method", "prefixkv")
    method = replace(method, eviction=replace(method.evicting, layers=recorder))
    queue = [Request.of(prompt, [Variant(method, span_tokens(prompt, question) - 1)], 1)]
    draw = lambda _: queue.pop() if queue else None  # noqa: E731
    answers = stream(loaded.model, loaded.engine_tokenizer, draw, question=question, max_length=loaded.max_length)
    for _, (generation,) in answers:
        if generation.error is not None:
            raise ValueError(f"{name}: {generation.error}")
    (mass_LT,) = recorder.seen
    return mass_LT


def _profile(records: Sequence[PromptRecord]) -> str:
    """Return the mean ratios as JSON, a line for each share."""
    rows = []
    for index, share in enumerate(SHARES):
        columns = zip(*(record["ratios"][index] for record in records), strict=True)
        means = [round(statistics.fmean(column), _DIGITS) for column in columns]
        rows.append(f'"{share}": {json.dumps(means)}')
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _as_record(value: object) -> PromptRecord:
    """Return a value of the file as a record. Raises ValueError if it is none."""
    check(value, PromptRecord)
    record = cast(PromptRecord, value)
    if len(record["ratios"]) != len(SHARES) or len(set(map(len, record["ratios"]))) > 1:
        raise ValueError(f"must have ratios for {len(SHARES)} shares, of as many layers each")
    return record
