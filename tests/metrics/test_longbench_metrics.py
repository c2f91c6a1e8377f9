"""LongBench scores worked by hand: each metric, each quirk of the published code, each switch, each mistake."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kvbench.metrics import bucket, dataset_score, longbench_score, longbench_scores
from kvbench.metrics.code_sim import first_code_line, fuzz_ratio
from kvbench.metrics.longbench import IN_LONGBENCH_E, METRIC_OF, VERSIONS, check_switches, metric_of

# ---- words: question answering -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "prediction", "answers", "score"),
    [
        ("qasper", "The Eiffel Tower!", ["eiffel tower"], 1.0),
        ("hotpotqa", "Barack Obama", ["Obama"], 2 / 3),  # precision 1/2, recall 1
        ("musique", "Barack Obama", ["Obama", "Barack Hussein Obama"], 0.8),  # the best answer counts
        ("2wikimqa", "U.S.A", ["USA"], 1.0),  # punctuation goes before anything else,
        ("2wikimqa", "a-b", ["ab"], 1.0),  # so this "a" is no article
        ("2wikimqa", "“Obama”", ["Obama"], 0.0),  # only ASCII punctuation goes
        ("narrativeqa", "no no no", ["no no"], 0.8),  # words count as often as both hold them
        ("narrativeqa", "the", ["the"], 0.0),  # two empty bags
        ("narrativeqa", "", ["x"], 0.0),
        ("narrativeqa", "x", [], 0.0),
        ("qasper", "Paris\nis nice", ["Paris"], 0.5),  # all lines count here,
        ("triviaqa", "\n\nParis\nis nice", ["Lyon", "Paris"], 1.0),  # the first one with text there
        ("triviaqa", " \nParis", ["Paris"], 0.0),  # leading newlines go, spaces do not
        ("triviaqa", "\r\nParis", ["Paris"], 0.0),
        ("multifieldqa_zh", "北京大学。", ["北京大学"], 1.0),
        ("multifieldqa_zh", "我来到北京", ["北京"], 0.5),  # jieba: 我 来到 北京
        ("multifieldqa_zh", "《北京", ["北京"], 2 / 3),  # LongBench's list of punctuation lacks 《
        ("multifieldqa_zh", "GPU 》北京", ["gpu北京"], 1.0),
        ("multifieldqa_zh", "", ["北京"], 0.0),
    ],
)
def test_question_answering(dataset: str, prediction: str, answers: list[str], score: float) -> None:
    assert longbench_score(dataset, prediction, answers) == pytest.approx(score, abs=1e-12)


# ---- sentences: summaries ------------------------------------------------------------------------


def f(union: int, prediction: int, answer: int) -> float:
    """Return the F of the package from the three set sizes."""
    p, r = union / prediction, union / answer
    return 2 * p * r / (p + r + 1e-8)


@pytest.mark.parametrize(
    ("dataset", "prediction", "answer", "score"),
    [
        ("gov_report", "the cat sat", "the cat sat", f(3, 3, 3)),
        ("qmsum", "The cat sat", "the cat sat", f(2, 3, 3)),  # case counts
        ("qmsum", "a mat, a mat", "a mat", f(2, 3, 2)),  # a set of words: a, mat, and "mat,"
        ("multi_news", "x b a y", "a b", f(1, 4, 2)),  # in order
        ("multi_news", "b. a", "a b", f(2, 2, 2)),  # the union over sentences forgets the order
        ("gov_report", "3.5", "5.3", f(2, 2, 2)),  # any full stop ends a sentence
        ("gov_report", "a. ", "b. ", f(1, 2, 2)),  # white space after it is a sentence of one empty word
        ("gov_report", "a b\n\nc", "a  b c", f(3, 3, 3)),
        ("gov_report", "...", "a", 0.0),
        ("gov_report", "", "a", 0.0),
        ("samsum", "\nAmy is ill\nBob too", "Amy is ill", f(3, 3, 3)),
        ("samsum", " a\nb", "b", 0.0),
        ("vcsum", "我来到北京", "来到北京", f(2, 3, 2)),
        ("dureader", "北京。上海", "上海。北京", f(1, 3, 3)),  # 。 ends no sentence, it is a word
        ("gov_report", "b a", "a b. a", f(2, 2, 2)),  # one LCS of several: of "a b" and "b a" the walk finds "b"
    ],
)
def test_summaries(dataset: str, prediction: str, answer: str, score: float) -> None:
    assert longbench_score(dataset, prediction, [answer]) == pytest.approx(score, abs=1e-12)


def test_recursion_limit_of_the_rouge_package() -> None:
    short, long = (" ".join(f"w{i}" for i in range(number)) for number in (990, 991))
    for text, limited in ((short, 1.0), (long, 0.0)):
        assert longbench_score("gov_report", text, [text]) == pytest.approx(1.0)
        assert longbench_score("gov_report", text, [text], recursion_limit=True) == pytest.approx(limited)
        assert longbench_score("gov_report", text, [text], recursion_limit="emulate") == pytest.approx(limited)
        assert longbench_score("gov_report", text, [text], recursion_limit="off") > 0.9
    # A pair without a common word is walked too, and one pair decides.
    assert longbench_score("gov_report", f"a. {short}", ["a. b"], recursion_limit=True) > 0
    assert longbench_score("gov_report", f"a. {long}", ["a. b"], recursion_limit=True) == 0.0
    # The Chinese score is a call deeper.
    for number, limited in ((989, 1.0), (990, 0.0)):
        text = "".join("，、"[i % 2] for i in range(number))
        assert longbench_score("vcsum", text, [text]) == pytest.approx(1.0)
        assert longbench_score("vcsum", text, [text], recursion_limit=True) == pytest.approx(limited)


# ---- classes, paragraphs, counts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answer", "classes", "score"),
    [
        ("Food", "Food", ["Food", "Date"], 1.0),
        ("food", "Food", ["Food", "Date"], 0.0),
        ("Food or Date", "Food", ["Food", "Date"], 0.5),
        ("Food", "Date", ["Food", "Date"], 0.0),
        ("Disease and medicine", "Disease and medicine", ["medicine", "Disease and medicine"], 1.0),
        # Deleted while the list is iterated over: the name after a deleted name is skipped.
        ("a ab abc", "abc", ["a", "ab", "abc"], 0.5),
        ("a x ab abc", "abc", ["a", "x", "ab", "abc"], 0.5),
        ("Food\nDate", "Food", ["Food", "Date"], 1.0),
        ("", "Food", ["Food"], 0.0),
        ("Food", "Food", [], 0.0),
    ],
)
@pytest.mark.parametrize("dataset", ["trec", "lsht"])
def test_classification(dataset: str, prediction: str, answer: str, classes: list[str], score: float) -> None:
    assert longbench_score(dataset, prediction, [answer], classes) == score


@pytest.mark.parametrize(
    ("dataset", "prediction", "answer", "score"),
    [
        ("passage_retrieval_en", "Paragraph 7", "Paragraph 7", 1.0),
        ("passage_retrieval_en", "paragraph 7, or 12", "Paragraph 7", 0.5),
        ("passage_retrieval_en", "7 is 7, not 70", "Paragraph 7", 2 / 3),
        ("passage_retrieval_en", "07", "Paragraph 7", 0.0),
        ("passage_retrieval_en", "７", "Paragraph 7", 0.0),  # a number, though not the same string
        ("passage_retrieval_en", "７ 7", "Paragraph 7", 0.5),
        ("passage_retrieval_en", "seven", "Paragraph 7", 0.0),
        ("passage_retrieval_zh", "段落7", "段落7", 1.0),
        ("passage_retrieval_zh", "段落7和段落8", "段落7", 0.5),
        ("passage_count", "There are 12.", "12", 1.0),
        ("passage_count", "1 2 12 12", "12", 0.5),
        ("passage_count", "", "12", 0.0),
    ],
)
def test_numbers(dataset: str, prediction: str, answer: str, score: float) -> None:
    assert longbench_score(dataset, prediction, [answer]) == pytest.approx(score)


# ---- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ny = 2", "x = 1"),
        ("\n\n  x = 1", "  x = 1"),
        ("```python\n# one\n// two\nx = 1", "x = 1"),
        ("# only a comment", ""),
        ("# c\n\nx = 1", ""),  # an empty line is a line without those signs
        ("a = b # c\nd", "d"),
        (" \nx", " "),
        ("x\r\ny", "x\r"),
    ],
)
def test_first_code_line(text: str, line: str) -> None:
    assert first_code_line(text) == line


@pytest.mark.parametrize(
    ("a", "b", "difflib", "indel"),
    [
        ("", "", 100, 100),
        ("", "a", 0, 0),
        ("a", "", 0, 0),
        ("abcd", "abcd", 100, 100),
        ("abcd", "bcde", 75, 75),
        ("abXcdYef", "cdabef", 57, 57),
        ("ab" * 100, "ba" * 100, 0, 100),  # both signs are junk to difflib in a string of 200; indel: 99.5 to even
        ("a" * 3 + "b" * 13, "a" * 3, 32, 32),  # 31.58
        ("a" + "b" * 7, "a" + "c" * 7, 12, 12),  # 12.5: half to even
        ("xabcx", "abxc", 67, 67),
        ("private", "tiavepr", 29, 43),  # difflib takes the block "pr" first, nothing else matches; an LCS is "ive"
    ],
)
def test_fuzz_ratio(a: str, b: str, difflib: int, indel: int) -> None:
    assert (fuzz_ratio(a, b, "difflib"), fuzz_ratio(a, b, "indel")) == (difflib, indel)


def test_code_scores_name_their_backend() -> None:
    scores = longbench_scores("lcc", "private", ["tiavepr"])
    assert scores == {"code_sim": 0.29, "code_sim_difflib": 0.29, "code_sim_indel": 0.43}
    assert longbench_scores("repobench-p", "private", ["tiavepr"], code_backend="indel")["code_sim"] == 0.43
    assert longbench_scores("lcc", "x", [], code_backend="indel") == dict.fromkeys(scores, 0.0)


# ---- switches, names, mistakes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "prediction", "answer", "none", "leading"),
    [
        ("lcc", "  x", "  x", 1.0, 0.5),  # indentation counts
        ("samsum", "\r\na b", "a b", 0.0, f(2, 2, 2)),
        ("triviaqa", " \n\t Paris\nLyon", "Paris", 0.0, 1.0),
        ("gov_report", " . a", "a", f(1, 2, 1), f(1, 1, 1)),
        ("qasper", "\n a b", "b", 1.0, 1.0),
    ],
)
def test_leading_white_space(dataset: str, prediction: str, answer: str, none: float, leading: float) -> None:
    assert longbench_score(dataset, prediction, [answer]) == pytest.approx(none)
    assert longbench_score(dataset, prediction, [answer], strip="leading") == pytest.approx(leading)


def test_names() -> None:
    assert len(METRIC_OF) == 21 and len(IN_LONGBENCH_E) == 13
    assert set(VERSIONS) == {*METRIC_OF.values(), "code_sim_difflib", "code_sim_indel"}
    for dataset in IN_LONGBENCH_E:
        assert metric_of(f"{dataset}_e") == METRIC_OF[dataset]
    assert longbench_scores("triviaqa_e", "Paris\nis nice", ["Paris"]) == {"qa_f1": 1.0}  # same post-processing
    assert check_switches(strip="leading") == {"code_backend": "difflib", "strip": "leading", "recursion_limit": False}


NO_DATASET = "LongBench has no such dataset."


@pytest.mark.parametrize(
    ("dataset", "answer", "switches", "message"),
    [
        ("quasper", "x", {}, f"dataset=quasper: {NO_DATASET} Did you mean 'qasper'?"),
        ("musique_e", "x", {}, f"dataset=musique_e: {NO_DATASET} Did you mean 'musique'?"),
        ("lcc_e_e", "x", {}, f"dataset=lcc_e_e: {NO_DATASET} Did you mean 'lcc_e'?"),
        ("zzz", "x", {}, f"dataset=zzz: {NO_DATASET} Known: {', '.join(METRIC_OF)}, qasper_e, "),
        ("lcc", "x", {"backend": "indel"}, "benchmark.backend=indel: the metrics have no such switch. Did you mean "),
        ("lcc", "x", {"code_backend": "fuzz"}, "benchmark.code_backend=fuzz: choose difflib or indel"),
        ("qmsum", "x", {"recursion_limit": "on"}, "benchmark.recursion_limit=on: choose off or emulate"),
        ("trec", "x", {}, "LongBench's data: all_classes is null, but a classification is scored with that list"),
        ("passage_retrieval_en", "7", {}, "LongBench's data: the answer '7' names no paragraph (Paragraph and its n"),
    ],
)
def test_mistakes(dataset: str, answer: str, switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        longbench_score(dataset, "x", [answer], **switches)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# ---- aggregation ---------------------------------------------------------------------------------


def test_dataset_score_and_buckets() -> None:
    assert dataset_score([0.5, 1.0, 0.123456]) == 54.12
    assert dataset_score(iter([1, 0, 0])) == 33.33
    assert math.isnan(dataset_score([]))
    assert [bucket(n) for n in (0, 3999, 4000, 7999, 8000, 10**6)] == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+", "8k+"]
