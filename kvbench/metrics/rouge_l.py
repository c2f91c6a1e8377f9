"""ROUGE-L F as the package `rouge` 1.0.1 computes it, which is what LongBench (arXiv 2308.14508) reports.

It differs from the ROUGE-L of `rouge_score` by ten points on long summaries. Only a full stop ends a
sentence, case and other punctuation count, and the words on the longest common subsequences (LCS) of all sentence
pairs form one set, so a repeated word counts once. The package fills a table of word pairs in a dict and walks back
by recursion: slow, and a RecursionError on long sentences. Here the table is one integer per row.
"""

from __future__ import annotations

from functools import lru_cache

# Moves of the package's recursive walk that fit under Python's limit of 1000 frames when its caller is LongBench's
# scoring script (measured with Python 3.11: ten frames are in use before the walk starts).
WALK_LIMIT = 990


def rouge_l(prediction: str, answer: str, walk_limit: int | None = None) -> float:
    """Return ROUGE-L F of the two texts; 0.0 if one of them has no sentence, that is, nothing but full stops.

    With a `walk_limit` the score is 0.0 as soon as the walk through one pair of sentences takes more moves.
    """
    hypothesis, reference = _sentences(prediction), _sentences(answer)
    if not hypothesis or not reference:
        return 0.0
    union: set[str] = set()
    for ref_words, _ in reference:
        for hyp_words, places in hypothesis:
            words, moves = _walk(ref_words, hyp_words, places)
            if walk_limit is not None and moves > walk_limit:
                return 0.0
            union |= words
    precision, recall = len(union) / _distinct(hypothesis), len(union) / _distinct(reference)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))  # the package's order of operations


Sentence = tuple[list[str], dict[str, int]]  # words, and for each word an integer with a bit set at its places


@lru_cache(maxsize=32)  # a prediction is scored against several answers
def _sentences(text: str) -> list[Sentence]:
    sentences = []
    for piece in text.split("."):
        if piece:
            words = " ".join(piece.split()).split(" ")  # white space alone makes one empty word, as in the package
            places: dict[str, int] = {}
            for place, word in enumerate(words):
                places[word] = places.get(word, 0) | 1 << place
            sentences.append((words, places))
    return sentences


def _distinct(sentences: list[Sentence]) -> int:
    return len(set().union(*(places for _, places in sentences)))


def _walk(ref_words: list[str], hyp_words: list[str], places: dict[str, int]) -> tuple[set[str], int]:
    """Return the words on the LCS that the package takes for a pair of sentences, and the number of its moves.

    Row i of the LCS table is kept as its horizontal differences (Hyyrö 2004): bit j is 0 where column j+1 is one
    larger than column j. At two different words, larger-above-than-left is just that: a 0 bit means up, a 1 bit left.
    """
    if places.keys().isdisjoint(ref_words):
        return set(), len(hyp_words)  # all bits are 1: straight to the left
    row = (1 << len(hyp_words)) - 1
    rows = [row]
    for word in ref_words:
        match = row & places.get(word, 0)
        row = (row + match) | (row - match)  # carries run over the top, where no bit is read
        rows.append(row)
    common, moves = set(), 0
    i, j = len(ref_words), len(hyp_words)
    while i and j:
        moves += 1
        if ref_words[i - 1] == hyp_words[j - 1]:
            common.add(ref_words[i - 1])
            i, j = i - 1, j - 1
        elif rows[i] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1
    return common, moves
