"""One string in the place of a list of answers is refused: each of its letters would be an answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from kvbench.metrics.answers import answer_score
from kvbench.metrics.longbench import longbench_score, longbench_scores
from kvbench.metrics.needle import exact_recall
from kvbench.metrics.ruler import ruler_sample_score, ruler_score

CALLS: list[Callable[[], object]] = [
    partial(longbench_score, "triviaqa", "Paris", "Paris"),
    partial(longbench_scores, "triviaqa", "Paris", "Paris"),
    partial(ruler_score, "niah_single_1", ["12"], ["21"]),
    partial(ruler_score, "niah_single_1", ["12"], "21"),
    partial(ruler_score, "niah_single_1", "12", [["12"], ["12"]]),
    partial(ruler_sample_score, "niah_single_1", "12", "21"),
    partial(exact_recall, "Paris", "Paris"),
    partial(answer_score, "contains", "Paris", "Paris"),
]


@pytest.mark.parametrize("call", CALLS)
def test_one_string_is_no_list(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^answers: give a list of strings such as \['.*'\], not one string$"):
        call()
