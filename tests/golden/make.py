"""Write the golden values: `python -m tests.golden.make`. Run it only after the tests marked `golden` have passed.

The functions here compute the values; the tests call the same functions and compare with the files.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvbench.benchmarks.base import ModelFacts
from kvbench.benchmarks.longbench import LongBench
from kvbench.benchmarks.longbench_datasets import DATASETS
from kvbench.benchmarks.longbench_protocols import PRESETS
from kvbench.benchmarks.prose import generated
from kvbench.benchmarks.ruler import TASKS, Sources
from kvbench.metrics import longbench_scores
from kvbench.metrics.needle import needle_overlap, needle_rouge
from kvbench.metrics.ruler import ruler_sample_score
from kvbench.models import EndIds
from kvbench.prompts import span_of, upstream
from tests.helpers import longbench_made_up
from tests.helpers.needle_forms import ToyTokenizer, make
from tests.helpers.outside import DATA
from tests.helpers.ruler_sources import generate, write_sources
from tests.helpers.tokenizers_for_tests import ALL

HERE = Path(__file__).resolve().parent
SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "emulate": {"recursion_limit": "emulate"},
    "indel": {"code_backend": "indel"},
    "leading": {"strip": "leading"},
    "leading-indel": {"strip": "leading", "code_backend": "indel"},
}
# rows that are hashed, by tokenizer and length; upstream has no rows of qa_2 with 1024 and 2048 tokens
UPSTREAM = [("words", 1024, 5), ("smollm2", 2048, 10), ("smollm2", 4096, 5)]
WITHOUT_SOURCES = ("niah_multikey_3", "vt", "fwe")
FITS = ("head", "linear2024")
_CHINESE = "会议在北京举行。代表们讨论了明年的预算，也讨论了新图书馆的位置！天气很好，大家都很高兴。"


# ---- RULER -----------------------------------------------------------------------------------------


def tasks_of(tokenizer: str, length: int) -> list[str]:
    """Return the tasks with golden rows of upstream's generator."""
    return [task for task in TASKS if (tokenizer, length) == ("smollm2", 4096) or task != "qa_2"]


def rows_hash(records: Iterable[dict[str, Any]]) -> str:
    """Return the sha256 of records as upstream writes them: one JSON object a line."""
    return hashlib.sha256("".join(json.dumps(record) + "\n" for record in records).encode()).hexdigest()


def own_rows(task: str, fit: str, sources: Sources) -> list[dict[str, Any]]:
    """Return three rows drawn from the tests' own sources."""
    return generate(task, 2000, "words", num_samples=3, sources=sources, fit=fit)


def _ruler() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        sources = Sources.load(write_sources(Path(folder) / "sources"))
        own = {f"{task}-{fit}": rows_hash(own_rows(task, fit, sources)) for task in TASKS for fit in FITS}
    hashes = {}
    for tokenizer, length, number in UPSTREAM:
        folder_name = "golden_ws" if tokenizer == "words" else tokenizer
        for task in tasks_of(tokenizer, length):
            lines = (DATA / "ruler" / folder_name / str(length) / f"{task}.jsonl").read_text().splitlines()[:number]
            hashes[f"{tokenizer}-{length}-{task}"] = rows_hash(map(json.loads, lines))
    return {"upstream": hashes, "own": own}


# ---- metrics ---------------------------------------------------------------------------------------


def _longbench_rows() -> list[dict[str, Any]]:
    rng = random.Random(11)
    prose = [f"{part}." for part in generated(11, 60_000).replace("\n", " ").split(". ") if part]
    rows = [{"dataset": name, **_case(name, number, rng, prose)} for name in DATASETS for number in range(12)]
    # one sentence that exceeds the recursion limit of the package `rouge`
    words = [" ".join(str(rng.randrange(40)) for _ in range(800)) for _ in range(2)]
    return [*rows, {"dataset": "gov_report", "prediction": words[0], "answers": [words[1]], "all_classes": None}]


def _case(dataset: str, number: int, rng: random.Random, prose: list[str]) -> dict[str, Any]:
    """Return a prediction near its answer, with the oddities that metrics treat in different ways."""
    answer, classes = rng.choice(prose), None
    if dataset.endswith("_zh") or dataset in ("dureader", "vcsum"):
        answer = _CHINESE[rng.randrange(20) :]
    if dataset.startswith("passage"):
        word = "段落" if dataset.endswith("zh") else "Paragraph "
        answer = str(number) if dataset == "passage_count" else f"{word}{number}"
        other = rng.choice(["", f" or {word}{number + 1}", f", {number}, １２", f" 0{number}"])
        return {"prediction": f"\nIt is {answer}{other}", "answers": [answer], "all_classes": None}
    if dataset in ("trec", "lsht"):
        classes = ["Food", "Foodstuff", "Date", "Date of birth", "Place"]
        answer = rng.choice(classes)
        prediction = f"\n{rng.choice([answer, ' '.join(rng.sample(classes, 3)), 'none'])}\n{rng.choice(classes)}"
        return {"prediction": prediction, "answers": [answer], "all_classes": classes}
    if dataset in ("lcc", "repobench-p"):
        answer = f"    return self.{rng.choice(['price', 'place', 'total'])}({number}, {'x' * rng.randrange(220)})"
        before = rng.choice(["", "\n", "# a comment\n", "```python\n", " "])
        return {"prediction": f"{before}{_edited(answer, rng)}\nmore", "answers": [answer], "all_classes": None}
    words = answer if number < 9 else " ".join(rng.sample(prose, 6))
    prediction = {0: "", 1: answer, 2: "...", 3: f"  {answer.upper()}", 4: f"the {answer} a an. . "}.get(
        number, _edited(words, rng)
    )
    more = [] if number % 3 else [_edited(answer, rng)]
    answers = [answer, *more] if number != 8 else []
    return {"prediction": prediction, "answers": answers, "all_classes": classes}


def _edited(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(max(1, len(letters) // 12)):
        place = rng.randrange(len(letters))
        letters[place : place + rng.randrange(1, 4)] = rng.choice(["", " ", "e", "-", ". ", "\n"])
        letters = letters or ["a"]
    return "".join(letters)


def longbench_row_scores(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return all scores of a row, by switch."""
    arguments = row["dataset"], row["prediction"], row["answers"], row["all_classes"]
    return {name: longbench_scores(*arguments, **switches) for name, switches in SWITCHES.items()}


def _ruler_metric_rows() -> list[dict[str, Any]]:
    rng = random.Random(12)
    rows = []
    for task in TASKS:
        for number in range(6):
            references = [f"{rng.choice('ab')}{rng.randrange(30)}" for _ in range(1 + number % 4)]
            split = f"{references[0][0]}\x01{references[0][1:]}"  # joined by kvpress alone
            words = [rng.choice([*references, "no", "B7", split, "12\t3"]) for _ in range(number * 2)]
            rows.append({"task": task, "prediction": rng.choice([" ", "\n", ", "]).join(words), "answers": references})
    return rows


def ruler_row_scores(row: dict[str, Any]) -> dict[str, float]:
    """Return a row's score as RULER and as kvpress compute it."""
    arguments = row["task"], row["prediction"], row["answers"]
    return {"ruler": ruler_sample_score(*arguments), "kvpress": ruler_sample_score(*arguments, kvpress=True)}


def _needle_metric_rows() -> list[dict[str, Any]]:
    rng = random.Random(13)
    answers = ["row a boat and rest on the far shore of the lake.", "plant nine trees, then sing."]
    return [
        {
            "prediction": rng.choice(["", " ", "\n"]) + _edited(answers[number % 2], rng),
            "answer": answers[number // 2 % 2],
        }
        for number in range(40)
    ]


def needle_row_scores(row: dict[str, Any]) -> dict[str, float]:
    """Return ROUGE-1 and overlap of a row."""
    arguments = row["prediction"], row["answer"]
    return {"rouge1": needle_rouge(*arguments), "overlap": needle_overlap(*arguments)}


def _scored(rows: list[dict[str, Any]], scores: Any) -> list[dict[str, Any]]:
    return [row | {"scores": scores(row)} for row in rows]


# ---- prompts ---------------------------------------------------------------------------------------


def needle_contexts() -> dict[str, list[Any]]:
    """Return the sha256 and the needle's place of contexts in our own prose, by sample."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prose.txt").write_text(generated(14, 40_000), encoding="utf-8")
        grid = {"lengths": [400, 1000, 3000], "start": None, "end": None, "step": None, "haystack": folder}
        samples = make("needle_pyramidkv", **grid).samples(ToyTokenizer())
    return {s.id: [hashlib.sha256(s.context.encode()).hexdigest(), s.meta["needle_token"]] for s in samples}


def prompt_hashes(name: str) -> dict[str, str]:
    """Return the sha256 of the ids of all prompts of the made-up LongBench, by protocol, dataset and limit."""
    tokenizer = ALL[name]()
    model = ModelFacts("Meta-Llama-3-8B-Instruct", max_length=8192)
    hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        path = longbench_made_up.write_bundle(Path(folder) / "bundle")
        for protocol in PRESETS:
            settings: dict[str, Any] = dict.fromkeys(
                ("question", "max_length", "wrapper", "code_backend", "samples", "max_new_tokens")
            )
            suite = LongBench("longbench", protocol, ["qasper", "trec", "samsum", "lcc"], str(path), **settings)
            for benchmark in suite.benchmarks(model):
                for limit in (41, 2000):
                    rendering = replace(benchmark.rendering, max_length=limit)
                    digest = hashlib.sha256()
                    for sample in benchmark.samples(tokenizer):
                        prompt = upstream.render(
                            tokenizer, sample, rendering, span=span_of(benchmark), ends=EndIds(), max_length=4096
                        )
                        digest.update(json.dumps([prompt.ids, prompt.context_len]).encode())
                    hashes[f"{protocol} {benchmark.name} {limit}"] = digest.hexdigest()[:16]
    return hashes


def write() -> None:
    """Write all files of this folder."""
    for name, rows in {
        "longbench_metrics": _scored(_longbench_rows(), longbench_row_scores),
        "ruler_metrics": _scored(_ruler_metric_rows(), ruler_row_scores),
        "needle_metrics": _scored(_needle_metric_rows(), needle_row_scores),
    }.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8")
    prompts = {name: prompt_hashes(name) for name in ALL}
    for name, value in {"ruler": _ruler(), "needle": needle_contexts(), "prompts": prompts}.items():
        (HERE / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
