"""Contexts that belong to a kind of task: examples, records, lists, numbered passages; and things to ask about."""

from __future__ import annotations

import random

from kvbench.benchmarks.prose import KEY_ADJECTIVES, KEY_NOUNS, generated
from perf.task_classifier.frames import expand, sections

_QUESTIONS = sections("words")["questions"]


def question(draw: random.Random, chinese: bool) -> str:
    """Return a question as it may be asked about some text."""
    return expand(draw, draw.choice(_QUESTIONS["chinese" if chinese else "english"]))


def name(draw: random.Random, chinese: bool) -> str:
    """Return the name of something: a key, a person, a topic."""
    if draw.random() < 0.3 and not chinese:
        return f"{draw.choice(KEY_ADJECTIVES)} {draw.choice(KEY_NOUNS)}"
    return expand(draw, "@名" if chinese else "@name")


def fields(draw: random.Random, chinese: bool) -> tuple[str, str]:
    """Return the names of the input and the output of examples."""
    first, _, second = expand(draw, "@字段" if chinese else "@fields").partition(">")
    return first, second


def examples(draw: random.Random, sentences: list[str], names: tuple[str, str], chinese: bool) -> str:
    """Return examples of inputs and outputs, in one of the ways of writing them."""
    between, after = draw.choice(
        ((": ", "\n"), (" = ", " | "), (" - ", "\n"), (":\n", "\n\n"), ("：" if chinese else ": ", " "))
    )
    labels = [expand(draw, "@标签" if chinese else "@label") for _ in range(5)]
    rows = []
    for _ in range(40):
        label = (
            draw.choice(sentences)[:60]
            if names[1] in ("Summary", "Target", "Solution", "French")
            else draw.choice(labels)
        )
        rows.append(f"{names[0]}{between}{draw.choice(sentences)[:150]}{after}{names[1]}{between}{label}")
    return draw.choice(("\n", "\n\n", "\n---\n")).join(rows)


def passages(draw: random.Random, sentences: list[str], chinese: bool) -> str:
    """Return numbered passages."""
    noun = (
        draw.choice(("段落", "文档", "文章"))
        if chinese
        else draw.choice(("Paragraph", "Passage", "Document", "Article", "Doc", "Text", "", "Review", "News"))
    )
    form = draw.choice(("{} {}: {}", "[{} {}] {}", "{} {}\n{}", "<{} {}>{}", "{} {}. {}"))
    texts = [" ".join(draw.choices(sentences, k=3)) for _ in range(30)]
    return draw.choice(("\n", "\n\n")).join(form.format(noun, number + 1, text) for number, text in enumerate(texts))


def records(draw: random.Random, chinese: bool) -> str:
    """Return keys with values: JSON, a table, a log, or lines of text."""
    keys = [name(draw, chinese) for _ in range(60)]
    form = draw.choice(
        (
            '"{}": "{}", ',
            "{}: {}\n",
            "| {} | {} |\n",
            "{},{}\n",
            "The number of {} is {}.\n",
            "VAR {} = {}\n",
            "2024-01-03 INFO {} id={}\n",
            "{} ordered {} boxes.\n",
        )
    )
    return "".join(form.format(key, draw.randrange(10**5)) for key in keys)


def items(draw: random.Random, sentences: list[str], chinese: bool) -> str:
    """Return a list with repetitions: words, numbers, or whole sentences."""
    kind = draw.randrange(3)
    if kind == 0:
        own = [str(draw.randrange(1000)) for _ in range(30)]
    elif kind == 1:
        own = draw.choices(sentences, k=15)
    else:
        names = [name(draw, chinese) for _ in range(10)]
        own = names if chinese else [*draw.sample(KEY_NOUNS, 15), "".join(draw.choices("abcdefghij", k=6))]
    form = draw.choice(("{1} ", "{1}\n", "{0}. {1} ", "{0}. {1}\n", "- {1}\n", "{1}, "))
    return "".join(form.format(number + 1, draw.choice(own)) for number in range(150))


def prose(draw: random.Random) -> str:
    """Return generated English prose."""
    return generated(draw.randrange(10**6), 4000)
