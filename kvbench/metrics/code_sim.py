"""Edit similarity of one line of code, LongBench's score for LCC and RepoBench-P (arXiv 2308.14508).

LongBench calls `fuzz.ratio` of fuzzywuzzy, which silently changes its algorithm when python-Levenshtein is installed:
1.4 to 2.4 points more for the same predictions. Here the caller names the algorithm.

fuzzywuzzy is what the official numbers mean, but it is not used: it is GPL and unmaintained. "difflib" is the standard
library, as in fuzzywuzzy itself; "indel" is computed by rapidfuzz. The tests compare with fuzzywuzzy where the extra
`parity` is installed.
"""

from __future__ import annotations

from difflib import SequenceMatcher

BACKENDS = ("difflib", "indel")


def code_sim(prediction: str, answer: str, backend: str) -> float:
    """Return the similarity in [0, 1] of the answer and the prediction's first line of code. Indentation counts."""
    return fuzz_ratio(first_code_line(prediction), answer, backend) / 100


def first_code_line(text: str) -> str:
    """Return the first line, after leading newlines, without a backtick, `#` or `//`; "" without such a line."""
    lines = text.lstrip("\n").split("\n")
    return next((line for line in lines if not ("`" in line or "#" in line or "//" in line)), "")


def fuzz_ratio(a: str, b: str, backend: str) -> int:
    """Return `fuzz.ratio` of fuzzywuzzy, 0 to 100.

    "difflib": fuzzywuzzy alone, LongBench's own. SequenceMatcher takes frequent characters of strings of 200 and more
    for junk, so a near-perfect long line may score 0. "indel": with python-Levenshtein, as in PyramidKV, and what
    thefuzz and rapidfuzz compute.
    """
    if a == b:
        return 100
    if not a or not b:
        return 0
    # Round half to even, and compute the indel ratio in exactly this form: 2 * LCS / total can round otherwise.
    return round(100 * (SequenceMatcher(None, a, b).ratio() if backend == "difflib" else _indel_ratio(a, b)))


def _indel_ratio(a: str, b: str) -> float:
    from rapidfuzz.distance import Indel

    return 1 - Indel.distance(a, b) / (len(a) + len(b))
