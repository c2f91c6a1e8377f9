"""Prompts composed of a grammar: a task before a context, after it, or both, in many frames and chat templates."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from kvbench.common.tasks import AGGREGATION, LOCALIZATION
from perf.task_classifier import contexts
from perf.task_classifier.frames import CJK, FILLERS, Kind, expand, framed, in_template, is_chinese, sections

KINDS = {task: {kind: Kind(parts) for kind, parts in sections(task).items()} for task in (LOCALIZATION, AGGREGATION)}
RUN = 6  # words in a row (or Chinese letters) that a composed instruction may not share with what is held out
_SENTENCE = re.compile(r"(?<=[.。!?！？])\s*")
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+")


@dataclass(frozen=True)
class Source:
    """A text that prompts are composed around.

    Attributes:
        name: the dataset that it is from.
        body: its context without instructions.
        questions: what its dataset asks about it, if that is a question.
    """

    name: str
    body: str
    questions: Sequence[str]
    chinese: bool
    code: bool
    sentences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Composed:
    """A composed prompt, with the line of the grammar that states its task, and the dataset of its context."""

    text: str
    kind: str
    task: str
    line: int
    content: str
    chinese: bool


def text_of(name: str, body: str, questions: Sequence[str], code: bool) -> Source:
    """Return a text with its sentences."""
    sentences = [s.strip() for s in _SENTENCE.split(body[:20000]) if 15 < len(s.strip()) < 400]
    return Source(name, body, questions, bool(CJK.search(body[-400:])), code, sentences)


def runs(texts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Return all runs of RUN words of texts; a Chinese letter is a word."""
    out = set[tuple[str, ...]]()
    for text in texts:
        words = _TOKEN.findall(text.lower())
        out |= {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}
    return frozenset(out)


def composed(
    draw: random.Random, sources: Sequence[Source], forbidden: frozenset[tuple[str, ...]], each: int
) -> Iterator[Composed]:
    """Yield `each` prompts of every form of a task. None of their instructions has a forbidden run of words."""
    usable = [text for text in sources if len(text.sentences) > 8 or text.code]
    for task, kinds in KINDS.items():
        for kind, forms in kinds.items():
            for line, ask in enumerate(forms.asks):
                for _ in range(each):
                    yield _prompt(draw, usable, forbidden, task, kind, line, ask)


def _prompt(
    draw: random.Random,
    sources: Sequence[Source],
    forbidden: frozenset[tuple[str, ...]],
    task: str,
    kind: str,
    line: int,
    ask: str,
) -> Composed:
    """Return one prompt of a form."""
    forms = KINDS[task][kind]
    chinese = is_chinese(ask)
    prose = [text for text in sources if text.chinese == chinese and not text.code]
    own = _any_of(draw, [text for text in sources if text.code] if kind == "code" else prose)
    others = _any_of(draw, prose)
    names = contexts.fields(draw, chinese)
    contents = {
        "q": draw.choice(own.questions) if own.questions and draw.random() < 0.3 else contexts.question(draw, chinese),
        "k": contexts.name(draw, chinese),
        "s": " ".join(draw.choices(others.sentences, k=draw.choice((1, 1, 1, 2, 4)))),
        "u": names[0],
        "v": names[1],
    }
    while True:  # until nothing held out is repeated
        before, after = _instruction(draw, forms, ask, chinese)
        if runs((before, after)).isdisjoint(forbidden):
            break
    context = _context(draw, kind, own, others, names, chinese)
    opening, end = framed(draw, chinese)
    parts = [expand(draw, part, **contents) if part else "" for part in (before, after)]
    gap = draw.choice(("\n", "\n\n", "\n\n", " "))
    head = f"{parts[0]}{gap}" if parts[0] else ""
    text = in_template(draw, f"{head}{opening}{context}{end}{gap}{parts[1]}")
    return Composed(text, kind, task, line, own.name, chinese)


def _any_of(draw: random.Random, sources: Sequence[Source]) -> Source:
    """Return a text; every dataset has the same chance."""
    name = draw.choice(sorted({text.name for text in sources}))
    return draw.choice([text for text in sources if text.name == name])


def _instruction(draw: random.Random, forms: Kind, ask: str, chinese: bool) -> tuple[str, str]:
    """Return what stands before and after a context. Contents are not filled in yet."""
    task = expand(draw, ask)
    before = (
        expand(draw, draw.choice(lines)) if (lines := forms.lines("before", chinese)) and draw.random() < 0.5 else ""
    )
    remarks = [
        expand(draw, draw.choice(lines))
        for chance in (0.35, 0.1)
        if (lines := forms.lines("remark", chinese)) and draw.random() < chance
    ]
    if draw.random() < 0.15:
        remarks.append(draw.choice(FILLERS[chinese]))
    cue = expand(draw, draw.choice(lines)) if (lines := forms.lines("cue", chinese)) and draw.random() < 0.4 else ""
    joint = draw.choice((" ", " ", "\n"))
    place = draw.random()
    if place < 0.65:
        return before, "\n".join(filter(None, (joint.join((task, *remarks)), cue)))
    if place < 0.8:  # twice
        again = draw.choice((task, task, expand(draw, ask)))
        return joint.join(filter(None, (before, task))), "\n".join(filter(None, (joint.join((again, *remarks)), cue)))
    neutral = draw.choice(FILLERS[chinese]) if draw.random() < 0.3 else ""
    return joint.join(filter(None, (before, task, *remarks))), "\n".join(filter(None, (neutral, cue)))


def _context(draw: random.Random, kind: str, own: Source, others: Source, names: tuple[str, str], chinese: bool) -> str:
    """Return a context, most often one that suits the kind."""
    if kind == "code":
        begin = draw.randrange(max(1, len(own.body) - 3000))
        return own.body[begin : begin + 4000]
    chance = draw.random()
    if kind == "few_shot" and chance < 0.85:
        return contexts.examples(draw, others.sentences, names, chinese)
    if kind == "questions" and chance < 0.1:
        shots = (
            ("问题", "答案") if chinese else draw.choice((("Question", "Answer"), ("Q", "A"), ("Passage", "Answer")))
        )
        return contexts.examples(draw, others.sentences, shots, chinese)
    suits = {"retrieval": 0.6, "counting": 0.2, "summaries": 0.2, "questions": 0.2}.get(kind, 0.1)
    if chance < suits:
        return contexts.passages(draw, own.sentences, chinese)
    suits += {"lookup": 0.4, "counting": 0.1}.get(kind, 0.03)
    if chance < suits:
        return contexts.records(draw, chinese)
    suits += {"counting": 0.4, "lookup": 0.1}.get(kind, 0.03)
    if chance < suits:
        return contexts.items(draw, own.sentences, chinese)
    if chance < suits + 0.1 and not chinese:
        return contexts.prose(draw)
    begin = draw.randrange(max(1, len(own.body) - 3000))
    return own.body[begin : begin + 4000]
