"""LongBench scores against the libraries that LongBench calls, and against a naive rule, on random texts."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Indel
from rouge import Rouge

from kvbench.metrics.bag_f1 import bag_f1
from kvbench.metrics.code_sim import fuzz_ratio
from kvbench.metrics.rouge_l import WALK_LIMIT, rouge_l
from kvbench.metrics.tokens_zh import tokens_zh

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for python-Levenshtein
    from fuzzywuzzy import fuzz
    from jieba import Tokenizer

# Few words, so that there are many common subsequences to choose from; odd white space and full stops.
TEXT = st.lists(st.sampled_from(["a", "b", "c", "d", "A", "a,", ".", ". ", "\n", "  ", " . "]), max_size=40).map(
    " ".join
)
GLUED = st.text("ab. \n\u3000", max_size=30)


def of_the_package(prediction: str, answer: str) -> float:
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:  # an empty text
        return 0.0


@settings(max_examples=1500, deadline=None)
@given(TEXT | GLUED, TEXT | GLUED)
@example("b a", "a b. a")
@example("...", "a")
@example(". ", "a")
def test_rouge_l_is_that_of_the_package(prediction: str, answer: str) -> None:
    assert rouge_l(prediction, answer) == of_the_package(prediction, answer)  # to the last bit


def test_rouge_l_of_long_texts_is_that_of_the_package() -> None:
    draw = random.Random(0)
    for words in (20, 70, 130, 300):
        prediction, answer = (" ".join(f"w{draw.randrange(words // 5)}" for _ in range(words)) for _ in range(2))
        assert rouge_l(prediction, answer) == of_the_package(prediction, answer) > 0


def test_rouge_l_limit_is_that_of_the_package_in_a_script() -> None:
    # The frames of LongBench's script: the file, its scorer, its metric, then the package.
    script = (
        "from rouge import Rouge\n"
        "def metric(text):\n"
        "    try:\n"
        "        return Rouge().get_scores([text], [text], avg=True)['rouge-l']['f']\n"
        "    except RecursionError:\n"
        "        return 0.0\n"
        "def scorer(text):\n"
        "    return metric(text)\n"
        "for words in 990, 991:\n"
        "    print(scorer(' '.join(map(str, range(words)))))\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    texts = [" ".join(map(str, range(words))) for words in (990, 991)]
    assert printed.split() == [str(rouge_l(text, text, walk_limit=WALK_LIMIT)) for text in texts]
    assert "0.0" in printed.split()


@settings(max_examples=400, deadline=None)
@given(st.text("ab(x) ", max_size=60), st.text("ab(x) ", max_size=60))
def test_indel_is_that_of_rapidfuzz(a: str, b: str) -> None:
    whole = 100 if a == b else 0 if not a or not b else round(100 * Indel.normalized_similarity(a, b))
    assert fuzz_ratio(a, b, "indel") == whole


@settings(max_examples=300, deadline=None)
@given(st.text("ab(x) ", max_size=260), st.text("ab(x) ", max_size=260))
def test_difflib_is_that_of_fuzzywuzzy(a: str, b: str) -> None:
    if fuzz.SequenceMatcher.__module__ == "difflib":
        assert fuzz_ratio(a, b, "difflib") == fuzz.ratio(a, b)
    else:  # python-Levenshtein is installed
        assert fuzz_ratio(a, b, "indel") == fuzz.ratio(a, b)


def test_difflib_does_not_depend_on_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SequenceMatcher", None)
    assert fuzz_ratio("private", "tiavepr", "difflib") == 29


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_bag_f1_naively(prediction: list[str], answer: list[str]) -> None:
    left, common = list(answer), 0
    for word in prediction:
        if word in left:
            left.remove(word)
            common += 1
    expected = 2 * common / (len(prediction) + len(answer)) if common else 0.0
    assert bag_f1(Counter(prediction), Counter(answer)) == pytest.approx(expected, abs=1e-12)


def test_tokens_are_jiebas_own(tmp_path: Path) -> None:
    own = Tokenizer()
    own.tmp_dir = str(tmp_path)  # its cache
    for text in ("我来到北京清华大学。", "他来到了网易杭研大厦", "GPU 3.5 与\n北京-上海《红楼梦》", "", "  "):
        assert list(tokens_zh(text)) == own.lcut(text)
