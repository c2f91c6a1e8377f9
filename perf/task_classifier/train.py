"""Training of the task classifier, and its figures on prompts that it has not seen."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvbench.common.paths import conf_dir
from kvbench.common.tasks import AGGREGATION, TASKS
from kvbench.data import longbench
from kvbench.methods.task_classifier import TaskClassifier, buckets, written
from perf.task_classifier.prompts import Prompt, as_json, prompts

BUCKETS, WORDS, READ = 65536, 36, 256
STEPS, RATE, PENALTY = 100, 0.05, 1e-3  # these and WORDS: chosen by --folds, not by the held-out figures
Array = npt.NDArray[Any]
SAME_PROMPT = ("longbench/hotpotqa", "longbench/2wikimqa", "longbench/musique")  # and all of niah, and of needle


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, and write conf/tables/task_classifier.json with its figures."""
    parser = argparse.ArgumentParser(prog="train_task_classifier", description=__doc__)
    parser.add_argument(
        "--longbench", help="folder with LongBench's files; default: the one of `kvbench data longbench`"
    )
    parser.add_argument("--out", default=str(conf_dir() / "tables" / "task_classifier.json"))
    parser.add_argument("--folds", action="store_true", help="print the figures of a cross-validation, and stop")
    parser.add_argument("--dump", help="write all prompts to this file as JSON lines, and stop")
    chosen = parser.parse_args(arguments)
    folder = str(longbench.find(chosen.longbench).root)
    if chosen.folds:
        show(cross_validation(folder))
        return 0
    every = prompts(folder)
    if chosen.dump:
        Path(chosen.dump).write_text("".join(f"{as_json(prompt)}\n" for prompt in every), encoding="utf-8")
        return 0
    features = Features(every)
    trained = [i for i, prompt in enumerate(every) if prompt.held_out is None]
    classifier = features.train(trained)
    figures = {
        name: report(every, features.answers(classifier, of), of)
        for name, of in {"trained_on": trained, **held_out_rows(every)}.items()
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


def held_out_rows(every: Sequence[Prompt]) -> dict[str, list[int]]:
    """Return the prompts that are not trained on, by why they are not."""
    out: dict[str, list[int]] = {}
    for i, prompt in enumerate(every):
        if prompt.held_out is not None:
            out.setdefault(f"held_out_{prompt.held_out}s", []).append(i)
    return out


def cross_validation(folder: str) -> dict[str, Any]:
    """Return the figures of three classifiers, each on the samples, wordings and forms left out of its training.

    What is held out for good takes no part in it. Parameters and the grammar's extent were chosen by these figures.
    """
    prompts_of: dict[str, list[Prompt]] = {}
    answers_of: dict[str, list[str]] = {}
    for fold in range(3):
        every = prompts(folder, fold=fold)
        features = Features(every)
        classifier = features.train([i for i, prompt in enumerate(every) if prompt.held_out is None])
        for name, rows in held_out_rows(every).items():
            prompts_of.setdefault(name, []).extend(every[row] for row in rows)
            answers_of.setdefault(name, []).extend(features.answers(classifier, rows))
    return {name: report(own, answers_of[name], range(len(own))) for name, own in prompts_of.items()}


def show(figures: Mapping[str, Any]) -> None:
    """Print reports."""
    for name, figure in figures.items():
        print(f"{name}: {figure['right']} of {figure['prompts']} right ({100 * figure['share']:.1f} %)", flush=True)
        print(f"  {figure['confusion']}\n  wrong: {figure['wrong']}", flush=True)


class Features:
    """The buckets of all prompts' n-grams."""

    def __init__(self, every: Sequence[Prompt]) -> None:
        self._every = every
        self._buckets = [np.array(sorted(buckets(p.first, p.last, BUCKETS, WORDS)), np.int32) for p in every]
        self._y = np.array([float(prompt.task == AGGREGATION) for prompt in every])

    def train(self, rows: Sequence[int]) -> TaskClassifier:
        """Return the classifier of a logistic regression. Every dataset, wording, form and task counts the same.

        Adam on all rows at once, in float64. The last of the weights is the bias.
        """
        keys = [(self._every[row].task, self._every[row].source, self._every[row].wording) for row in rows]
        prompts_of, sources_of = Counter(keys), Counter(key[0] for key in set(keys))
        share = np.array([0.5 / prompts_of[key] / sources_of[key[0]] for key in keys])
        own, y = [self._buckets[row] for row in rows], self._y[list(rows)]
        flat, sizes = np.concatenate(own), np.array([len(bag) for bag in own])
        starts = np.cumsum(sizes) - sizes
        w, mean, square = np.zeros((3, BUCKETS + 1))
        for step in range(1, STEPS + 1):
            sums = np.add.reduceat(w[flat], starts) + w[-1]
            error = (1 / (1 + np.exp(-sums)) - y) * share
            gradient = np.bincount(flat, np.repeat(error, sizes), BUCKETS + 1) + 2 * PENALTY * w
            gradient[-1] = error.sum()
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            w -= RATE * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        return quantised(w[:-1], float(w[-1]))

    def answers(self, classifier: TaskClassifier, rows: Sequence[int]) -> list[str]:
        """Return the task that the classifier gives to prompts."""
        return [classifier.task_of_texts(self._every[row].first, self._every[row].last) for row in rows]


def quantised(w: Array, bias: float) -> TaskClassifier:
    """Return a classifier with weights of 8 bits."""
    scale = 127 / float(np.abs(w).max())
    return TaskClassifier(np.round(w * scale).astype(np.int8).tobytes(), round(bias * scale), READ, WORDS)


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
    if group in ("wordings", "forms", "later", "needle"):
        return group
    return SAME_PROMPT[0] if source in SAME_PROMPT else "ruler/niah" if name.startswith("niah") else source


def leave_one_out(every: Sequence[Prompt], features: Features) -> dict[str, Any]:
    """Return the report on datasets, each answered by a classifier that saw no prompt with its template.

    Nor did it see a wording or form around one of their contexts. To save time, these classifiers are trained on a
    third of the prompts under wordings and forms.
    """
    rows: list[int] = []
    answers: list[str] = []
    own_words = ("wordings", "forms")
    templates = [template_of(prompt.source) for prompt in every]
    contents = [template_of(prompt.content or "") for prompt in every]
    for template in sorted(set(templates) - {*own_words, "later"}):
        own = [i for i, other in enumerate(templates) if other == template]
        others = [i for i, prompt in enumerate(every) if templates[i] != template and prompt.held_out is None]
        others = [i for i in others if templates[i] not in own_words or (i % 3 == 0 and contents[i] != template)]
        rows += own
        answers += features.answers(features.train(others), own)
    return report(every, answers, rows)
