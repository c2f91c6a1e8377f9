"""A small folder of RULER sources in upstream's layout: enough for all thirteen tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from kvbench.benchmarks import ruler
from kvbench.benchmarks.ruler.words import ADJECTIVES, NOUNS, VERBS

_TOPICS = ("harbour", "orchard", "railway", "library", "mountain")


def write_sources(folder: Path) -> Path:
    """Write word lists, essays, sentence tables, 5 articles with 12 paragraphs each, and 20 hotpot questions."""
    words = folder / "wonderwords-2.2.0"
    words.mkdir(parents=True)
    # an adjective that begins another one, as real lists have
    for kind, items in {
        "adjective": [*ADJECTIVES[:120], "ice", "ice-cold"],
        "noun": [*NOUNS[:300], "cold-store"],
        "verb": VERBS[:100],
    }.items():
        (words / f"{kind}list.txt").write_text("\n".join(items) + "\n")
    # upstream's second list, for more different words than the first three hold
    more = {str(number): f"word{number}" for number in range(3000)}
    (folder / "english_words.json").write_text(json.dumps(more))
    rng = random.Random(5)
    essay = "\n\n".join(" ".join(_sentence(rng) for _ in range(6)) for _ in range(150))
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": essay}))
    tables = folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    tables.mkdir(parents=True)
    (tables / "abbrev_types.txt").write_text("dr\nmr\n")
    (tables / "sent_starters.txt").write_text("the\n")
    (tables / "collocations.tab").write_text("##number##\tharbour\n")
    (tables / "ortho_context.tab").write_text("the\t40\n")
    articles = [_article(topic, rng) for topic in _TOPICS]
    (folder / "squad.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    (folder / "hotpotqa_some.json").write_text(json.dumps([_hotpot(i, rng) for i in range(20)]))
    return folder


def generate(task: str, length: int, tokenizer: Any, **settings: Any) -> list[dict[str, Any]]:
    """Return the rows of a request."""
    return ruler.generate(ruler.RulerRequest(task, length, tokenizer, **settings))


def _sentence(rng: random.Random) -> str:
    return (
        f"The {rng.choice(NOUNS)} of Dr. {rng.choice(NOUNS).title()} would {rng.choice(VERBS)} the {rng.choice(NOUNS)}."
    )


def _article(topic: str, rng: random.Random) -> dict:
    paragraphs = []
    for number in range(12):
        context = f"Chapter {number} on the {topic}. " + " ".join(_sentence(rng) for _ in range(4))
        answerable = {"question": f"What is chapter {number} on?", "answers": [{"text": f"the {topic}"}] * 2}
        impossible = {"question": "Which colour?", "answers": [], "is_impossible": True}
        paragraphs.append({"context": context, "qas": [{**answerable, "is_impossible": False}, impossible]})
    return {"title": topic, "paragraphs": paragraphs}


def _hotpot(number: int, rng: random.Random) -> dict:
    context = [[f"Title {number}-{part}", [_sentence(rng), " " + _sentence(rng)]] for part in range(10)]
    facts = [[f"Title {number}-{part}", 0] for part in (3, 8)]
    return {
        "question": f"Who wrote number {number}?",
        "answer": f"Writer {number}",
        "supporting_facts": facts,
        "context": context,
    }
