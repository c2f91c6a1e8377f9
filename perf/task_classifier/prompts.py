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
from perf.task_classifier import later
from perf.task_classifier.compose import composed, runs, text_of
from perf.task_classifier.wordings import HELD_OUT, KINDS, LOCALIZATION_KINDS, WRAPPERS

PROMPTS_PER_WORDING, PROMPTS_PER_FORM = 24, 40
_CODE = ("longbench", "lcc", "repobench")
_QUESTION = re.compile(r"(?:Question|问题)[:：]\s*(.{4,200})")
_CJK = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Prompt:
    """The ends of a prompt, as text, and its task.

    Attributes:
        source: dataset or kind, such as "longbench/qasper", "ruler/vt", "wordings/summaries", "forms/summaries".
        wording: number of the wording; None for a dataset's own.
        held_out: "sample", "wording", "later_wording" or "form" if it is not trained on; None if it is.
        content: dataset of the context that stands under a wording.
    """

    first: str
    last: str
    task: str
    source: str
    wording: int | None = None
    held_out: str | None = None
    content: str | None = None


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


def prompts(longbench: str | None, seed: int = 0, fold: int | None = None) -> list[Prompt]:
    """Return all prompts in a fixed order. Without a LongBench folder, those of our generators alone.

    Of the samples and of our own wordings, every fourth is held out. With a `fold` (0 to 2), those are left out, and
    the ones that follow the same rhythm are held out in their place: parameters are chosen by these.
    """
    draw = random.Random(seed)
    rows = [] if longbench is None else list(_longbench(longbench))
    samples = [*rows, *_ruler(), *_needle()]
    sizes = Counter(source for _, source in samples)
    places = [_place(number, fold) for number in range(len(samples))]
    out = []
    for (sample, source), place in zip(samples, places, strict=True):
        rest = sample.question + sample.answer_prefix
        for _ in range(max(1, 24 // sizes[source])):  # small sets come several times
            ends = _ends(draw, sample.context + rest, bool(_CJK.search(rest)))
            if place != "left out":
                out.append(Prompt(*ends, _known(sample.task), source, held_out="sample" if place else None))
    used = [
        (sample, source, place is not None)
        for (sample, source), place in zip(samples, places, strict=True)
        if place != "left out"
    ]
    out += _wordings(draw, used, fold)
    out += _composed(random.Random(seed + 1), used, fold)
    return out if fold is not None else out + _later(random.Random(seed + 2), used)


def _place(number: int, fold: int | None) -> str | None:
    """Return None for what is trained on, "held out" or "left out"."""
    last = number % HELD_OUT == HELD_OUT - 1
    if fold is None:
        return "held out" if last else None
    return "left out" if last else "held out" if number % HELD_OUT == fold else None


def _known(task: str | None) -> str:
    assert task is not None
    return task


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


def _wordings(draw: random.Random, samples: Sequence[tuple[Sample, str, bool]], fold: int | None) -> list[Prompt]:
    """Return contexts of the samples under our own wordings. A held-out wording stands around held-out contexts."""
    out = []
    texts = {held: [entry for entry in samples if entry[2] == held] for held in (False, True)}
    for kind, wordings in KINDS.items():
        task = LOCALIZATION if kind in LOCALIZATION_KINDS else AGGREGATION
        for number, (before, after) in enumerate(wordings):
            place = _place(number, fold)
            for _ in range(0 if place == "left out" else PROMPTS_PER_WORDING):
                if place is None:  # an end of a wording may stand with another beginning
                    before = draw.choice([b for n, (b, _) in enumerate(wordings) if _place(n, fold) is None])
                    before = before if bool(_CJK.search(before)) == bool(_CJK.search(after)) else ""
                context, question, content = _content(draw, kind, bool(_CJK.search(before + after)), texts[bool(place)])
                filled = [text.replace("{question}", question) for text in (before, after)]
                ends = _ends(draw, filled[0] + context + filled[1], bool(_CJK.search(filled[1])))
                held_out = "wording" if place else None
                out.append(Prompt(*ends, task, f"wordings/{kind}", number, held_out, content))
    return out


def _later(draw: random.Random, samples: Sequence[tuple[Sample, str, bool]]) -> list[Prompt]:
    """Return held-out contexts under the wordings that were written last."""
    out = []
    held = [entry for entry in samples if entry[2]]
    for task, kinds in later.KINDS.items():
        for kind, wordings in kinds.items():
            for number, (before, after) in enumerate(wordings):
                for _ in range(PROMPTS_PER_WORDING):
                    context, question, content = _content(draw, kind, bool(_CJK.search(before + after)), held)
                    filled = [text.replace("{question}", question) for text in (before, after)]
                    ends = _ends(draw, filled[0] + context + filled[1], bool(_CJK.search(filled[1])))
                    out.append(Prompt(*ends, task, f"later/{kind}", number, "later_wording", content))
    return out


def _composed(draw: random.Random, samples: Sequence[tuple[Sample, str, bool]], fold: int | None) -> list[Prompt]:
    """Return the prompts of the grammar around contexts that are trained on."""
    sources = [
        text_of(
            name, _body(sample), _QUESTION.findall(sample.question), str(sample.meta.get("dataset")).startswith(_CODE)
        )
        for sample, name, held in samples
        if not held
    ]
    forbidden = runs(
        [
            *(
                text
                for sample, *_ in samples
                for text in (sample.context[:400], sample.context[-300:], sample.question)
            ),
            *(text for ws in KINDS.values() for n, w in enumerate(ws) if n % HELD_OUT in (3, fold) for text in w),
        ]
    )
    out = []
    for prompt in composed(draw, sources, forbidden, PROMPTS_PER_FORM):
        held_out = "form" if fold is not None and prompt.line % (HELD_OUT - 1) == fold else None
        ends = _cut(draw, prompt.text, prompt.chinese)
        out.append(Prompt(*ends, prompt.task, f"forms/{prompt.kind}", prompt.line, held_out, prompt.content))
    return out


def _body(sample: Sample) -> str:
    """Return the context of a sample without its instructions."""
    lines = sample.context.split("\n")
    return "\n".join(lines[2:-2]) if len(lines) > 8 else sample.context


def _content(
    draw: random.Random, kind: str, chinese: bool, samples: Sequence[tuple[Sample, str, bool]]
) -> tuple[str, str, str]:
    """Return another prompt's context without its instructions, something to ask about, and the context's dataset."""
    fitting = [entry for entry in samples if bool(_CJK.search(entry[0].context[-400:])) == chinese] or list(samples)
    if kind == "code":
        own = [entry for entry in fitting if str(entry[0].meta.get("dataset", "")).startswith(_CODE)]
        fitting = own or fitting
    sample, dataset, _ = draw.choice(fitting)
    body = _body(sample)
    if draw.random() < 0.3 and not chinese and kind != "code":
        body = generated(draw.randrange(10**6), 6000)
    begin = draw.randrange(max(1, len(body) - 3000))
    if kind == "questions":
        asked = [m[1] for s, *_ in fitting if s.task == LOCALIZATION and (m := _QUESTION.search(s.question))]
        question = draw.choice(asked or ["Who was it?"])
    elif kind in ("retrieval", "few_shot"):
        sentences = re.split(r"(?<=[.。!?])\s*", body)
        question = draw.choice(sentences)[:200]
    else:
        question = _key(draw)
    return body[begin : begin + 6000], question, dataset


def _key(draw: random.Random) -> str:
    return " ".join(draw.choice(("blue", "river", "Anna", "station", "winter", "code", "seven")) for _ in range(2))


def _ends(draw: random.Random, text: str, chinese: bool) -> tuple[str, str]:
    """Return the ends of a prompt in one of our wrappers."""
    before, after = draw.choice(WRAPPERS)
    return _cut(draw, f"{before}{text}{after}", chinese)


def _cut(draw: random.Random, text: str, chinese: bool) -> tuple[str, str]:
    """Return the ends of a prompt: about as much text as 256 tokens of some tokenizer are."""
    size = draw.randrange(100, 400) if chinese else draw.randrange(600, 1500)
    return text[:size], text[max(size, len(text) - size) :]


def as_json(prompt: Prompt) -> str:
    """Return a prompt as a line of JSON, to look at."""
    return json.dumps(vars(prompt), ensure_ascii=False)
