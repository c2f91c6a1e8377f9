"""Training of the task classifier, and its figures on prompts that it has not seen."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvbench.common.paths import conf_dir
from kvbench.common.tasks import AGGREGATION, TASKS
from kvbench.data import longbench
from kvbench.methods.task_classifier import TaskClassifier, buckets, written
from perf.task_classifier.prompts import Prompt, as_json, prompts

BUCKETS, WORDS, READ = 32768, 40, 256
STEPS, PENALTY = 60, 1e-3
SAME_PROMPT = ("longbench/hotpotqa", "longbench/2wikimqa", "longbench/musique")  # and all of niah, and of needle


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, and write conf/tables/task_classifier.json with its figures."""
    parser = argparse.ArgumentParser(prog="train_task_classifier", description=__doc__)
    parser.add_argument(
        "--longbench", help="folder with LongBench's files; default: the one of `kvbench data longbench`"
    )
    parser.add_argument("--out", default=str(conf_dir() / "tables" / "task_classifier.json"))
    parser.add_argument("--dump", help="write all prompts to this file as JSON lines, and stop")
    chosen = parser.parse_args(arguments)
    folder = str(longbench.find(chosen.longbench).root)
    every = prompts(folder)
    if chosen.dump:
        Path(chosen.dump).write_text("".join(f"{as_json(prompt)}\n" for prompt in every), encoding="utf-8")
        return 0
    features = Features(every)
    trained = [i for i, prompt in enumerate(every) if prompt.held_out is None]
    classifier = features.train(trained)
    figures = {
        name: report(every, features.answers(classifier, of), of)
        for name, of in (
            ("trained_on", trained),
            ("held_out_samples", [i for i, prompt in enumerate(every) if prompt.held_out == "sample"]),
            ("held_out_wordings", [i for i, prompt in enumerate(every) if prompt.held_out == "wording"]),
        )
    }
    text = written(classifier)
    Path(chosen.out).write_text(text, encoding="utf-8")
    show(figures)
    figures["held_out_datasets"] = leave_one_out(every, features)
    about = {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "command": "python scripts/train_task_classifier",
        "data": f"{sum(p.source.startswith('longbench') for p in every)} prompts of LongBench's 21 datasets, "
        f"{sum(not p.source.startswith('longbench') for p in every)} of our generators and wordings",
        "figures": figures,
    }
    Path(chosen.out.removesuffix(".json") + ".about.json").write_text(
        json.dumps(about, indent=1) + "\n", encoding="utf-8"
    )
    show({"held_out_datasets": figures["held_out_datasets"]})
    return 0


def show(figures: Mapping[str, Any]) -> None:
    """Print reports."""
    for name, figure in figures.items():
        print(f"{name}: {figure['right']} of {figure['prompts']} right ({100 * figure['share']:.1f} %)", flush=True)
        print(f"  {figure['confusion']}\n  wrong: {figure['wrong']}", flush=True)


class Features:
    """The buckets of all prompts' n-grams."""

    def __init__(self, every: Sequence[Prompt]) -> None:
        self._every = every
        self._buckets = [torch.tensor(sorted(buckets(p.first, p.last, BUCKETS, WORDS))) for p in every]
        self._y = torch.tensor([float(prompt.task == AGGREGATION) for prompt in every])

    def train(self, rows: Sequence[int]) -> TaskClassifier:
        """Return the classifier of a logistic regression. Every dataset or wording counts the same, and every task."""
        torch.manual_seed(0)
        keys = [(self._every[row].task, self._every[row].source, self._every[row].wording) for row in rows]
        prompts_of, sources_of = Counter(keys), Counter(key[0] for key in set(keys))
        weight = torch.tensor([1 / prompts_of[key] / sources_of[key[0]] for key in keys])
        own = [self._buckets[row] for row in rows]
        flat, y = torch.cat(own), self._y[list(rows)]
        bags = torch.tensor([0, *(len(bag) for bag in own[:-1])]).cumsum(0)
        w, b = torch.zeros(BUCKETS, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimiser = torch.optim.Adam([w, b], lr=0.05)
        for _ in range(STEPS):
            optimiser.zero_grad()
            sums = torch.nn.functional.embedding_bag(flat, w[:, None], bags, mode="sum")[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(sums + b, y, weight, reduction="sum")
            (loss / 2 + PENALTY * (w**2).sum()).backward()
            optimiser.step()
        return quantised(w.detach(), float(b.detach()))

    def answers(self, classifier: TaskClassifier, rows: Sequence[int]) -> list[str]:
        """Return the task that the classifier gives to prompts."""
        return [classifier.task_of_texts(self._every[row].first, self._every[row].last) for row in rows]


def quantised(w: Tensor, bias: float) -> TaskClassifier:
    """Return a classifier with weights of 8 bits."""
    scale = 127 / float(w.abs().max())
    numbers = (w * scale).round().to(torch.int8).tolist()
    return TaskClassifier(bytes(number & 255 for number in numbers), round(bias * scale), READ, WORDS)


def report(every: Sequence[Prompt], answers: Sequence[str], rows: Sequence[int]) -> dict[str, Any]:
    """Return how many prompts got their task, the confusion matrix, and the wrong ones by their source."""
    pairs = Counter((every[row].task, answer) for row, answer in zip(rows, answers, strict=True))
    wrong = Counter(every[row].source for row, answer in zip(rows, answers, strict=True) if every[row].task != answer)
    right = sum(count for (task, answer), count in pairs.items() if task == answer)
    return {
        "prompts": len(rows),
        "right": right,
        "share": round(right / len(rows), 4),
        "confusion": {task: {answer: pairs[task, answer] for answer in TASKS} for task in TASKS},
        "wrong": dict(wrong.most_common()),
    }


def template_of(source: str) -> str:
    """Return a name that datasets with the same prompt share."""
    group, _, name = source.partition("/")
    if group in ("wordings", "needle"):
        return group
    return SAME_PROMPT[0] if source in SAME_PROMPT else "ruler/niah" if name.startswith("niah") else source


def leave_one_out(every: Sequence[Prompt], features: Features) -> dict[str, Any]:
    """Return the report on datasets, each answered by a classifier that saw no prompt with its template.

    To save time, these classifiers are trained on a third of the prompts under our own wordings.
    """
    rows: list[int] = []
    answers: list[str] = []
    templates = [template_of(prompt.source) for prompt in every]
    for template in sorted(set(templates) - {"wordings"}):
        own = [i for i, other in enumerate(templates) if other == template]
        others = [i for i, prompt in enumerate(every) if templates[i] != template and prompt.held_out is None]
        others = [i for i in others if templates[i] != "wordings" or i % 3 == 0]
        rows += own
        answers += features.answers(features.train(others), own)
    return report(every, answers, rows)
