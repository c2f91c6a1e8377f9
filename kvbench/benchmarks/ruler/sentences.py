"""Sentence splitting for the essay haystack: NLTK's Punkt as upstream, and a simple rule where it is not there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
# A full stop, question or exclamation mark, perhaps a closing quote, then white space.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')])\s+")


def punkt(folder: Path) -> Callable[[str], list[str]]:
    """Return NLTK's sentence splitter with the parameters of a punkt_tab folder.

    Nothing is downloaded or unpickled. The four tables are read here: NLTK's own reader asks for a path of its data
    folder, in a form that changed between versions. Raises ValueError for a damaged table.
    """
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    try:
        _fill(parameters, folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"benchmark.path: {folder} is damaged ({error}); fetch it with `kvbench data ruler`") from None
    split: Callable[[str], list[str]] = PunktSentenceTokenizer(parameters).tokenize
    return split


def _fill(parameters: Any, folder: Path) -> None:
    parameters.abbrev_types = {line for (line,) in _rows(folder / "abbrev_types.txt")}
    parameters.sent_starters = {line for (line,) in _rows(folder / "sent_starters.txt")}
    parameters.collocations = set(_rows(folder / "collocations.tab"))
    counts = ((word, int(count)) for word, count in _rows(folder / "ortho_context.tab"))
    parameters.ortho_context = defaultdict(int, counts)


def _rows(file: Path) -> Iterator[tuple[str, ...]]:
    for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        yield tuple(line.split("\t"))


def simple(text: str) -> list[str]:
    """Split after . ! ? and white space. Enough for generated prose, which has no abbreviations."""
    return [sentence for sentence in _END.split(text) if sentence]
