"""Statistics of the report: intervals against scipy, coverage in simulations, Holm, contexts, and marks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kvbench.report.bca import acceleration, bounds, influences, stretched
from kvbench.report.best import _contributions, best_rows
from kvbench.report.bootstrap import NORMAL, Floats, distribution, generator, resamples, stretch, variances
from kvbench.report.difference import ColumnScores, Difference, differences, paired_difference
from kvbench.report.holm import holm, p_values
from kvbench.report.paired import Matrix, by_cluster
from tests.helpers.fake_runs import make_part, numbers

# scipy 1.17: stats.bootstrap((x,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(7),
# confidence_level=1 - 2 * ndtr(-1.959964 * stretch)).confidence_interval of the differences that `drawn` gives
SCIPY = [
    ("normal", 5, -0.4659620444659616, 0.19787788208144555), ("sign", 5, -1.0, 0.0),
    ("skew", 5, -0.19866699760124445, -0.017416043622230433),
    ("normal", 28, -0.2147756267516333, 0.025663478831656587),
    ("sign", 28, -0.35714285714285715, 0.07142857142857142),
    ("skew", 28, -0.1553523832850059, -0.06412558873243185),
    ("normal", 200, -0.18793368932335444, -0.10054996591164894), ("sign", 200, -0.155, -0.035),
    ("skew", 200, -0.11497776973812099, -0.09056788808686803),
]  # fmt: skip


def drawn(kind: str, size: int | tuple[int, int], seed: int) -> np.ndarray:
    """Return differences whose true mean is -0.1: normal, right or wrong, skewed."""
    random = np.random.default_rng(seed)
    if kind == "normal":
        return random.normal(-0.1, 0.3, size)
    if kind == "sign":
        return random.choice([-1.0, 0, 1], size, p=[0.15, 0.8, 0.05])
    return -random.exponential(0.1, size)


def interval(datasets: list[tuple[np.ndarray, np.ndarray]], weights: list[float]) -> tuple[Floats, Floats]:
    """Return the BCa interval at the expanded level, and the one that is reported, of a weighted sum of means.

    datasets: [clusters] sums and numbers of values of each.
    """
    random = np.random.default_rng(7)
    means, mean, squares, cubes = np.zeros((1, 9999)), np.zeros(1), np.zeros(1), np.zeros(1)
    parts = []
    for (sums, sizes), weight in zip(datasets, weights, strict=True):
        row = sums[None], sizes[None]
        means += weight * distribution(*row, resamples(len(sums), random))
        mean += weight * sums.sum() / sizes.sum()
        second, third = influences(*row)
        squares, cubes = squares + weight**2 * second, cubes + weight**3 * third
        variance, number = variances(*row)
        parts.append((weight**2 * variance, number))
    factor, skewed = stretch(parts), acceleration(squares, cubes)
    return bounds(means, mean, skewed, NORMAL * factor)[:, 0], stretched(means, mean, skewed, factor)[:, 0]


@pytest.mark.parametrize(("kind", "n", "low", "high"), SCIPY)
def test_intervals_equal_those_of_scipy_on_the_same_resamples(kind: str, n: int, low: float, high: float) -> None:
    expanded, shown = interval([(drawn(kind, n, n), np.ones(n))], [1.0])
    assert expanded == pytest.approx([low, high], abs=1e-12)
    assert (shown.tolist() == expanded.tolist()) == (n > 5)


def test_contexts_are_resampled_with_all_of_their_questions_as_by_scipy() -> None:
    """The statistic that scipy resampled is the ratio of the sums of differences and of their numbers."""
    sizes = np.random.default_rng(3).integers(1, 6, 30).astype(float)
    sums = np.random.default_rng(4).normal(0, 1, 30) * sizes
    _, shown = interval([(sums, sizes)], [1.0])
    assert shown == pytest.approx([-0.6612221912375869, 0.19317296725056687], abs=1e-12)


def test_the_interval_of_an_average_equals_that_of_scipy_with_several_samples() -> None:
    """Scipy resampled three datasets independently: stats.bootstrap((x, y, z), weighted sum of ratios)."""
    sizes = {n: np.random.default_rng(n).integers(1, 4, n).astype(float) for n in (6, 28, 40)}
    _, shown = interval([(drawn("skew", n, n) * sizes[n], sizes[n]) for n in sizes], [0.5, 0.25, 0.25])
    assert shown == pytest.approx([-0.1088889742494355, -0.06219650724180878], abs=1e-12)


def test_a_bound_is_never_unknown_and_never_beyond_the_mean() -> None:
    """Resampled means that are all equal, all on one side, or beyond the pole of the correction."""
    line = np.linspace(0, 1, 999)
    means, estimates = np.stack([line * 0, line, line, line]), np.array([0.0, 0.0, 2.0, 1.0])
    low, high = stretched(means, estimates, np.array([0.0, 0.16, 0.16, -0.16]), np.array([1.0, 1.2, 1.2, 9.0]))
    assert np.isfinite([low, high]).all() and (low <= estimates).all() and (estimates <= high).all()
    assert (low[0], high[0]) == (0, 0)
    assert influences(np.array([[0.0, 3.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 0.0]])) == (
        pytest.approx([0, 0]),
        pytest.approx([0, 0]),
    )
    assert acceleration(np.zeros(1), np.zeros(1)) == 0


def test_resamples_count_each_cluster_and_go_on_over_blocks() -> None:
    counts = resamples(700, np.random.default_rng(1), draws=4000)
    plain = np.random.default_rng(1).integers(0, 700, (4000, 700))
    assert (counts.sum(1) == 700).all()
    for at in (0, 2995, 2996, 3999):
        assert (counts[at] == np.bincount(plain[at], minlength=700)).all()


def test_the_interval_of_a_tables_average_is_that_of_its_datasets() -> None:
    """Averages of categories weigh datasets unequally, and a row without a dataset leaves it out of its own average."""
    numbers_of = {"a": 12, "b": 30, "c": 60}
    columns = []
    for name, n in numbers_of.items():
        rows = [0, 2] if name == "c" else [0, 1, 2]  # the second row lacks c; the last one is the full cache
        values = np.concatenate([drawn("skew", (len(rows) - 1, n), n), np.zeros((1, n))])
        columns.append(ColumnScores(name, rows, Matrix(tuple(map(str, range(n))), values, np.arange(n))))
    computed = differences(columns, {"macro": [["a", "b"], ["c"]]}, 3, 2, draws=999)
    for row, weights in enumerate(({"a": 0.25, "b": 0.25, "c": 0.5}, {"a": 0.5, "b": 0.5})):
        means, mean, squares, cubes, parts = np.zeros((1, 999)), np.zeros(1), np.zeros(1), np.zeros(1), []
        for column in columns[: len(weights)]:
            weight, sums = weights[column.name], column.matrix.scores[[row]]
            sizes = np.ones_like(sums)
            drawn_again = resamples(sums.shape[1], generator(column.name), 999)
            means += weight * distribution(sums, sizes, drawn_again)
            mean += weight * sums.mean()
            second, third = influences(sums, sizes)
            squares, cubes = squares + weight**2 * second, cubes + weight**3 * third
            variance, number = variances(sums, sizes)
            parts.append((weight**2 * variance, number))
        low, high = stretched(means, mean, acceleration(squares, cubes), stretch(parts))[:, 0]
        own = computed[row]["macro"]
        assert [own["mean"], own["low"], own["high"]] == pytest.approx([mean[0], low, high], abs=1e-9)
        assert own["n"] == sum(numbers_of[name] for name in weights)


def rows_of(values: np.ndarray, clusters: np.ndarray | None = None) -> list[Difference | None]:
    """Return the differences of [rows, samples] scores to zeros."""
    number = len(values)
    codes = np.arange(values.shape[1]) if clusters is None else clusters
    scores = Matrix(
        tuple(map(str, range(values.shape[1]))), np.concatenate([values, np.zeros((1, values.shape[1]))]), codes
    )
    column = ColumnScores("dataset", range(number + 1), scores)
    return [row.get("dataset") for row in differences([column], {}, number + 1, number, draws=999)[:number]]


def held(rows: list[Difference | None]) -> float:
    """Return the share of intervals that hold -0.1."""
    known = [(row["low"], row["high"]) for row in rows if row and row["low"] is not None and row["high"] is not None]
    assert len(known) > 0.98 * len(rows)
    return float(np.mean([low <= -0.1 <= high for low, high in known]))


@pytest.mark.parametrize("kind", ["normal", "sign", "skew"])
@pytest.mark.parametrize("n", [20, 50, 200])
def test_ninety_five_percent_intervals_hold_the_truth_in_ninety_five_percent(kind: str, n: int) -> None:
    assert 0.93 <= held(rows_of(drawn(kind, (1500, n), 11))) <= 0.97


@pytest.mark.parametrize("n", [2, 4, 8])
def test_intervals_of_very_few_samples_do_not_end_at_these_samples(n: int) -> None:
    assert 0.925 <= held(rows_of(drawn("normal", (1000, n), 11))) <= 0.97


def test_intervals_hold_the_truth_where_questions_share_contexts_and_too_seldom_if_that_is_ignored() -> None:
    random = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 5)
    values = -0.1 + np.repeat(random.normal(0, 0.2, (1000, 40)), 5, axis=1) + random.normal(0, 0.2, (1000, 200))
    together, ignored = (held(rows_of(values, codes)) for codes in (clusters, None))
    assert 0.93 <= together <= 0.97 and ignored < 0.85


def test_a_row_does_not_depend_on_the_other_rows_of_its_table() -> None:
    values = drawn("normal", (70, 30), 3)
    values[5, :7] = np.nan
    together = rows_of(values)
    for at in (0, 5, 69):
        assert rows_of(values[at : at + 1]) == [together[at]]
    five = together[5]
    assert five is not None and five["n"] == 23


def test_few_samples_get_wider_intervals() -> None:
    factors = []
    for n in (5, 20, 200):
        variance, number = variances(drawn("normal", (1, n), 1), np.ones((1, n)))
        factors.append(float(stretch([(variance, number)])[0]))
    assert factors == pytest.approx([1.584, 1.096, 1.0086], abs=0.002)


def test_by_cluster_adds_up_what_is_known() -> None:
    sums, sizes = by_cluster(np.array([[1.0, 2.0, np.nan, 4.0]]), np.array([0, 1, 0, 1]))
    assert sums.tolist() == [[1.0, 6.0]] and sizes.tolist() == [[1.0, 2.0]]


def test_a_context_that_the_full_cache_did_not_answer_does_not_count() -> None:
    values = np.array([[0.5, 0.9, 0.2, 0.3, 0.4, 0.6], [1.0, np.nan, 1.0, 1.0, 1.0, 1.0]])
    whole = Matrix(tuple("abcdef"), values, np.array([0, 1, 2, 2, 3, 3]))
    (computed, _) = differences([ColumnScores("dataset", [0, 1], whole)], {}, 2, 1, draws=999)
    assert computed["dataset"]["n"] == 5 and computed["dataset"]["mean"] == pytest.approx(-0.6)
    some = Matrix(tuple("acdef"), values[:, [0, 2, 3, 4, 5]], np.array([0, 1, 1, 2, 2]))
    assert differences([ColumnScores("dataset", [0, 1], some)], {}, 2, 1, draws=999)[0] == computed


def test_a_single_context_has_no_interval() -> None:
    run, full = make_part("snapkv", "0.2", "qasper", 0.5), make_part("fullkv", "full", "qasper", 1.0)
    for sample in (*run.samples, *full.samples):
        sample["context"] = "the only one"
    result = paired_difference(*numbers([run, full]), "qa_f1")
    assert result is not None and (result["low"], result["reason"], result["significant"]) == (None, "1 context", False)


# ---- tests of several comparisons ------------------------------------------------------------------


def test_sign_flip_p_values_are_exact_for_few_contexts() -> None:
    values = np.random.default_rng(1).normal(0.2, 0.5, 10)
    signs = np.array(list(itertools.product((-1, 1), repeat=10)))
    sums = np.abs(signs @ values)
    exact = np.mean(sums >= abs(values.sum()) - 1e-9)
    assert p_values(values[None])[0] == exact == 0.029296875, "scipy.stats.permutation_test says the same"
    assert p_values(np.full((1, 6), -1.0))[0] == 2 / 64 and p_values(np.zeros((1, 5)))[0] == 1


def test_sign_flip_p_values_are_close_to_the_exact_ones_where_few_answers_differ() -> None:
    """A few methods differ in few answers, and right and wrong answers make sums on a grid."""
    few = np.concatenate([np.ones(5), np.zeros(60)])
    assert p_values(few[None])[0] == 2 / 32
    grid = np.array([[1.0] * 11 + [-1.0] * 3, [1.0] * 12 + [-1.0] * 2])
    assert p_values(grid) == pytest.approx([0.05737, 0.01294], rel=0.2)  # 2 P(B >= 11), 2 P(B >= 12); B of 14
    fifty = np.array([[0.25] * 33 + [-0.25] * 17])
    assert p_values(fifty)[0] == pytest.approx(0.03284, rel=0.1)
    few_large = np.array([[1.0] * 4 + [0.01] * 10 + [-0.01] * 6])  # one dataset of an average has four contexts
    assert p_values(few_large)[0] == pytest.approx(0.02841, rel=0.05)


def test_sign_flip_p_values_of_many_contexts_are_no_smaller_than_chance() -> None:
    p = p_values(np.random.default_rng(2).choice([-1.0, 0, 1], (2000, 60), p=[0.2, 0.6, 0.2]))
    smooth = p_values(np.random.default_rng(2).normal(0, 1, (2000, 60)))
    assert 0.025 <= (p < 0.05).mean() <= 0.05 and 0.04 <= (smooth < 0.05).mean() <= 0.06
    assert p_values(np.zeros((1, 60)))[0] == 1 and p_values(np.zeros((2, 0))).tolist() == [1, 1]


@pytest.mark.parametrize("top", [1.0, 100.0])
def test_intervals_end_where_a_difference_of_two_scores_must(top: float) -> None:
    """Stretched intervals of four samples leave [-1, 1]; nothing else about them changes, and unknown ranges stay."""
    few = top * np.array([[1.0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0.9], [0, 0, 3, 0]])
    ids, clusters = tuple("abcd"), np.arange(4)
    results = {}
    for known in (None, top):
        columns = [ColumnScores(name, range(4), Matrix(ids, few, clusters), known) for name in ("x", "y")]
        results[known] = differences(columns, {"mean": [["x", "y"]]}, 4, 0)
    for key in ("x", "y", "mean"):
        free, cut = ([row[key] for row in results[known][1:]] for known in (None, top))
        assert any((row["low"] or 0) < -top for row in free[:2])
        for before, after in zip(free[:2], cut[:2], strict=True):
            assert after["low"] == max(before["low"] or 0, -top) and after["high"] == min(before["high"] or 0, top)
            assert {**after, "low": 0, "high": 0} == {**before, "low": 0, "high": 0}
        assert cut[2] == free[2], "a score above the range: what a difference can be is unknown"


def test_holm_steps_down() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.5])).tolist() == [1.0, 1.0] and holm(np.array([])).tolist() == []


def marked(scores: np.ndarray, groups: list[list[int]], methods: str = "abcdefghij") -> set[int]:
    ids = tuple(map(str, range(scores.shape[1])))
    column = ColumnScores("qasper", range(len(scores)), Matrix(ids, scores, np.arange(scores.shape[1])))
    return best_rows([column], {}, {"qasper": scores.mean(1).tolist()}, groups, methods)["qasper"]


def test_the_best_is_marked_only_if_it_beats_all_others_under_its_budget() -> None:
    random = np.random.default_rng(8)
    base = random.random(100)
    better, good, same = base + 0.3 + random.normal(0, 0.1, 100), base + random.normal(0, 0.1, 100), base
    assert marked(np.stack([better, good, same]), [[0, 1, 2]]) == {0}
    assert marked(np.stack([good, same]), [[0, 1]]) == set(), "a difference that may be chance"
    assert marked(np.stack([better, good, same]), [[0], [1, 2]]) == set(), "nothing to beat, or no difference"
    assert marked(np.stack([better, better, same]), [[0, 1, 2]]) == set(), "two are equally good"


def test_seeds_of_one_method_are_no_rivals() -> None:
    random = np.random.default_rng(8)
    base = random.random(100)
    better = base + 0.3 + random.normal(0, 0.1, 100)
    other = better + random.normal(0, 0.1, 100)
    assert marked(np.stack([better, better, base]), [[0, 1, 2]], "aab") == {0, 1}, "a seed that changes nothing"
    assert marked(np.stack([better, other, base]), [[0, 1, 2]], "aab") in ({0}, {1})
    assert marked(np.stack([better, base, base]), [[0, 1, 2]], "abb") == {0}
    assert marked(np.stack([better, base]), [[0, 1]], "aa") == set(), "nothing to beat"
    assert marked(np.stack([better, other, better]), [[0, 1, 2]], "aba") == set(), "a difference that may be chance"


def test_a_row_is_not_best_that_is_worse_on_the_common_samples() -> None:
    """A method that ran out of memory on the hard samples has a higher mean of what is left."""
    hard = np.arange(100) % 2 == 0
    worse = np.where(hard, np.nan, 0.7)
    other = np.where(hard, 0.1, 0.9)
    ids = tuple(map(str, range(100)))
    column = ColumnScores("qasper", range(2), Matrix(ids, np.stack([worse, other]), np.arange(100)))
    assert best_rows([column], {}, {"qasper": [0.7, 0.5]}, [[0, 1]], "ab")["qasper"] == set()


def test_a_row_without_a_dataset_is_not_the_best_of_an_average() -> None:
    """Its average is of the other datasets, which may be the easier ones."""
    random = np.random.default_rng(8)
    easy, hard = 0.8 + random.normal(0, 0.02, 100), 0.2 + random.normal(0, 0.02, 100)
    ids = tuple(map(str, range(100)))
    columns = [
        ColumnScores("easy", [0, 1, 2], Matrix(ids, np.stack([easy + 0.1, easy, easy - 0.1]), np.arange(100))),
        ColumnScores("hard", [1, 2], Matrix(ids, np.stack([hard, hard - 0.1]), np.arange(100))),
    ]
    shown = {"easy": [0.9, 0.8, 0.7], "hard": [None, 0.2, 0.1], "mean": [0.9, 0.5, 0.4]}
    best = best_rows(columns, {"mean": [["easy", "hard"]]}, shown, [[0, 1, 2]], "abc")
    assert best == {"easy": {0}, "hard": {1}, "mean": {1}}


def test_contributions_add_up_to_the_difference_of_the_average() -> None:
    """In a mean over categories, every category counts alike, however many datasets and answers it has."""
    random = np.random.default_rng(4)
    columns, means = {}, {}
    for name, n in (("a", 7), ("b", 12), ("c", 30)):
        scores = random.random((3, n))
        columns[name] = ColumnScores(name, [0, 1, 2], Matrix(tuple(map(str, range(n))), scores, np.arange(n)))
        means[name] = scores.mean(1)
    macro = (means["a"] + means["b"]) / 4 + means["c"] / 2
    computed = _contributions(columns, [["a", "b"], ["c"]], ["a", "b", "c"], 1, [0, 2])
    assert computed.sum(1) == pytest.approx(macro[1] - macro[[0, 2]])
    without = _contributions(columns, [["a", "b"], ["c"]], ["a", "b"], 1, [0])
    assert without.sum(1) == pytest.approx([(means["a"] + means["b"])[1] / 2 - (means["a"] + means["b"])[0] / 2])


def test_marks_are_rare_without_any_difference() -> None:
    """At most 5 % of 200 columns with 10 equal methods may have a mark."""
    random = np.random.default_rng(9)
    marks = sum(bool(marked(random.normal(0, 1, (10, 50)), [list(range(10))])) for _ in range(200))
    assert marks <= 10


def test_random_numbers_depend_on_the_name_alone() -> None:
    first, second, other = (generator(name).integers(0, 99, 5).tolist() for name in ("a", "a", "b"))
    assert first == second != other
