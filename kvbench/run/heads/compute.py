"""Scores of a model's heads: every prompt of a probe is answered, and each is on disk before the next begins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from kvbench import models, prompts
from kvbench.benchmarks.base import Sample
from kvbench.benchmarks.head_probes import HeadProbe, token_span
from kvbench.engine.observed import observed_steps
from kvbench.prompts import Prompt
from kvbench.run.asset import RecordFolder
from kvbench.run.heads.results import ProbeRecord, as_record, folder_of, write_table
from kvbench.run.heads.rules import RULES
from kvbench.run.versions import versions

log = logging.getLogger(__name__)

_FEW = 10  # prompts that count; with fewer, chance decides which heads score


def compute(spec: models.ModelSpec, probe: HeadProbe, outputs: str, progress: bool = True) -> Path:
    """Answer the prompts that have no record yet, and write the table. Returns its path.

    Raises:
        ValueError: the model cannot take the prompts, or answers none of them well enough; one line.
    """
    setting: dict[str, Any] = {
        "model": {"name": spec.label, "weights": spec.identity(), "dtype": spec.dtype},
        "probe": probe.protocol(),
        "frame": prompts.frame_hash(spec),
        "rendering": prompts.VERSION,
        "versions": {name: number for name, number in versions().items() if name != "method"},
    }
    tokenizer: Any = models.load_tokenizer(spec)
    render = prompts.renderer(spec, tokenizer, probe)  # type: ignore[arg-type]
    rendered = [(sample, render(sample)) for sample in probe.samples(tokenizer)]
    needles = {sample.id: _needle(tokenizer, sample, prompt) for sample, prompt in rendered}
    folder = folder_of(outputs, setting)
    with RecordFolder.open(folder, setting, as_record) as results:
        todo = [(sample, prompt) for sample, prompt in rendered if sample.id not in results.records]
        log.info("%s: %d of %d prompts to answer (%s)", spec.label, len(todo), len(rendered), folder)
        if todo:
            loaded = models.load(spec)
            for sample, prompt in tqdm(todo, unit="prompt", desc=probe.probe, disable=not progress):
                results.append(_answer(loaded, probe, sample, prompt, needles[sample.id]))
        return _finish(spec, probe, results, [sample.id for sample, _ in rendered])


def _needle(tokenizer: Any, sample: Sample, prompt: Prompt) -> tuple[int, int]:
    """Return begin and end of the needle in a prompt, in tokens. Raises ValueError if the tokenizer changes it."""
    span = token_span(tokenizer, prompt.ids, str(sample.meta["needle"]))
    if span is None:
        raise ValueError(f"model: its tokenizer does not give back the text {sample.meta['needle']!r}; choose another")
    return span


def _answer(
    loaded: models.Loaded, probe: HeadProbe, sample: Sample, prompt: Prompt, needle: tuple[int, int]
) -> ProbeRecord:
    """Return the record of one prompt."""
    rule, scores_LH, tokens = RULES[probe.probe], torch.zeros(()), []
    steps = observed_steps(loaded.model, prompt.ids, sample.max_new_tokens, prompt.stop_ids, loaded.max_length)
    for token, weight_LHS in steps:
        scores_LH = scores_LH + rule(weight_LHS, token, prompt.ids, needle).cpu()
        tokens.append(token)
    text = str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    score = probe.score(sample, text)
    heads: list[list[float]] = scores_LH.tolist() if score > probe.bar else []
    return {"id": sample.id, "score": score, "prediction": text, "heads": heads}


def _finish(spec: models.ModelSpec, probe: HeadProbe, results: RecordFolder[ProbeRecord], ids: list[str]) -> Path:
    """Write the table of the prompts that count. Raises ValueError if none does."""
    records = [results.records[name] for name in ids]
    counted = [record for record in records if record["heads"]]
    best = max(records, key=lambda record: record["score"])
    if not any(score for record in counted for layer in record["heads"] for score in layer):
        raise ValueError(
            f"{spec.setting}: none of {len(ids)} prompts of probe={probe.probe} counts, the best answer scores "
            f"{best['score']:.2f} ({best['prediction'][:60]}); try shorter heads.lengths, a lower heads.bar, or a "
            "model that can answer them"
        )
    if len(counted) < _FEW:
        log.warning(
            "only %d of %d prompts count: chance has a large part in these scores; try shorter heads.lengths or a "
            "larger heads.num_seeds",
            len(counted),
            len(ids),
        )
    path = write_table(results, f"{spec.label}_{probe.probe}", counted)
    log.info("%d of %d prompts count: %s", len(counted), len(ids), _best_heads(counted))
    return path


def _best_heads(counted: list[ProbeRecord]) -> str:
    """Return the heads with the largest mean scores in words."""
    means: dict[str, float] = {}
    for record in counted:
        for layer, row in enumerate(record["heads"]):
            for head, score in enumerate(row):
                means[f"{layer}-{head}"] = means.get(f"{layer}-{head}", 0.0) + score / len(counted)
    best = sorted(means, key=lambda head: -means[head])[:5]
    return "best heads " + ", ".join(f"{head} ({means[head]:.3f})" for head in best)
