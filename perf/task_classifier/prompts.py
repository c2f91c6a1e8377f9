"""Prompts with known tasks: LongBench's, RULER's and needle's own, and contexts under other wordings."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from kvbench.benchmarks.base import ModelFacts, Sample
from kvbench.benchmarks.longbench import LongBench
from kvbench.benchmarks.needle import Needle
from kvbench.benchmarks.prose import generated
from kvbench.benchmarks.ruler.suite import Ruler
from kvbench.common.paths import conf_dir
from kvbench.common.tasks import AGGREGATION, LOCALIZATION
from perf.task_classifier.wordings import HELD_OUT, KINDS, LOCALIZATION_KINDS, WRAPPERS

PROMPTS_PER_WORDING = 24
_QUESTION = re.compile(r"(?:Question|问题)[:：]\s*(.{4,200})")
_CJK = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Prompt:
    """The ends of a prompt, as text, and its task.

    Attributes:
        source: dataset or kind, such as "longbench/qasper", "ruler/vt", "wordings/summaries".
        wording: number of the wording; None for a dataset's own.
        held_out: "sample" or "wording" if it is not trained on; None if it is.
    """

    first: str
    last: str
    task: str
    source: str
    wording: int | None = None
    held_out: str | None = None


class Words:
    """A tokenizer whose tokens are words with the spaces before them."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of the words of a text."""
        return [self._id(word) for word in re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)]

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        """Return the text of words."""
        return "".join(self._words[i] for i in token_ids)

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]


def prompts(longbench: str | None, seed: int = 0) -> list[Prompt]:
    """Return all prompts in a fixed order. Without a LongBench folder, those of our generators alone."""
    draw = random.Random(seed)
    rows = [] if longbench is None else list(_longbench(longbench))
    samples = [*rows, *_ruler(), *_needle()]
    sizes = Counter(source for _, source in samples)
    out = []
    for number, (sample, source) in enumerate(samples):
        held_out = "sample" if number % 4 == 3 else None
        for _ in range(max(1, 24 // sizes[source])):  # small sets come several times
            out.append(
                _ends(draw, sample.context, sample.question + sample.answer_prefix, sample.task, source, held_out)
            )
    out += _wordings(draw, [(sample, number % 4 == 3) for number, (sample, _) in enumerate(samples)])
    return out


def _node(benchmark: str, **settings: Any) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "benchmark" / f"{benchmark}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if key != "_target_"} | settings


def _longbench(folder: str) -> Iterator[tuple[Sample, str]]:
    suite = LongBench(**_node("longbench", datasets=["all21"], path=folder))
    for part in suite.benchmarks(ModelFacts("words")):
        for sample in part.samples(Words()):
            yield sample, f"longbench/{part.column.name}"


def _ruler() -> Iterator[tuple[Sample, str]]:
    suite = Ruler(**_node("ruler", tasks=["synthetic"], lengths=[1500], samples=24, wrapper="none", path="embedded"))
    for part in suite.benchmarks(ModelFacts("words")):
        for sample in part.samples(Words()):
            yield sample, f"ruler/{part.column.name}"


def _needle() -> Iterator[tuple[Sample, str]]:
    for name in ("needle", "needle_classic", "needle_pyramidkv"):
        grid = {"lengths": [600, 1200], "start": None, "end": None, "step": None, "depths": [20, 60], "num_seeds": 6}
        needle = Needle(**_node(name, **grid, seed=0, haystack="generated", period_ids=None, reference="", stop=[]))
        for sample in needle.samples(Words()):
            yield sample, f"needle/{name}"


def _wordings(draw: random.Random, samples: Sequence[tuple[Sample, bool]]) -> list[Prompt]:
    """Return contexts of the samples under our own wordings. A held-out wording stands around held-out contexts."""
    out = []
    texts = {held: [sample for sample, is_held in samples if is_held == held] for held in (False, True)}
    for kind, wordings in KINDS.items():
        task = LOCALIZATION if kind in LOCALIZATION_KINDS else AGGREGATION
        for number, (before, after) in enumerate(wordings):
            held = number % HELD_OUT == HELD_OUT - 1
            for _ in range(PROMPTS_PER_WORDING):
                if not held:  # an end of a wording may stand with another beginning
                    before = draw.choice([b for n, (b, a) in enumerate(wordings) if n % HELD_OUT != HELD_OUT - 1])
                    before = before if bool(_CJK.search(before)) == bool(_CJK.search(after)) else ""
                context, question = _content(draw, kind, bool(_CJK.search(before + after)), texts[held])
                filled = [text.replace("{question}", question) for text in (before, after)]
                source = f"wordings/{kind}"
                out.append(
                    _ends(draw, filled[0] + context, filled[1], task, source, "wording" if held else None, number)
                )
    return out


def _content(draw: random.Random, kind: str, chinese: bool, samples: Sequence[Sample]) -> tuple[str, str]:
    """Return a context of another prompt without its instructions, and something to ask about."""
    code = ("longbench", "lcc", "repobench")
    fitting = [s for s in samples if bool(_CJK.search(s.context[-400:])) == chinese] or list(samples)
    if kind == "code":
        own = [s for s in fitting if str(s.meta.get("dataset", "")).startswith(code)]
        fitting = own or fitting
    sample = draw.choice(fitting)
    lines = sample.context.split("\n")
    body = "\n".join(lines[2:-2]) if len(lines) > 8 else sample.context
    if draw.random() < 0.3 and not chinese and kind != "code":
        body = generated(draw.randrange(10**6), 6000)
    begin = draw.randrange(max(1, len(body) - 3000))
    if kind == "questions":
        asked = [m[1] for s in fitting if s.task == LOCALIZATION and (m := _QUESTION.search(s.question))]
        question = draw.choice(asked or ["Who was it?"])
    elif kind in ("retrieval", "few_shot"):
        sentences = re.split(r"(?<=[.。!?])\s*", body)
        question = draw.choice(sentences)[:200]
    else:
        question = _key(draw)
    return body[begin : begin + 6000], question


def _key(draw: random.Random) -> str:
    return " ".join(draw.choice(("blue", "river", "Anna", "station", "winter", "code", "seven")) for _ in range(2))


def _ends(
    draw: random.Random,
    context: str,
    rest: str,
    task: str | None,
    source: str,
    held_out: str | None,
    wording: int | None = None,
) -> Prompt:
    """Return the ends of a wrapped prompt: about as much text as 256 tokens of some tokenizer are."""
    assert task is not None
    before, after = draw.choice(WRAPPERS)
    text = f"{before}{context}{rest}{after}"
    size = draw.randrange(100, 400) if _CJK.search(rest) else draw.randrange(600, 1500)
    return Prompt(text[:size], text[max(size, len(text) - size) :], task, source, wording, held_out)


def as_json(prompt: Prompt) -> str:
    """Return a prompt as a line of JSON, to look at."""
    return json.dumps(vars(prompt), ensure_ascii=False)
