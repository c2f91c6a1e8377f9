"""`kvbench report power A B`: how many samples would separate two methods at the variance that was observed.

For a paired comparison of means with normal tails: n = (z(1 - alpha / 2) + z(power))^2 s^2 / d^2, plus
z(1 - alpha / 2)^2 / 2 for the estimate of s in small samples (Guenther, The American Statistician 35, 1981), where s is
the standard deviation of the paired differences and d their mean. The detectable difference is the d of the samples at
hand. Questions on one context count together: s is that of contexts, and the number of samples is the number of
contexts times the questions on each.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypedDict

from kvbench.common.command import Parser, command
from kvbench.common.text import one_line
from kvbench.report.bootstrap import variances
from kvbench.report.choose import SIDES, Pair, add_sides, pairs
from kvbench.report.difference import Difference, paired_difference
from kvbench.report.formats import interval, markdown, number
from kvbench.report.measured import score_names
from kvbench.report.paired import matrix
from kvbench.report.runs import check_metric, title


class Power(TypedDict):
    """The answer for one benchmark.

    Attributes:
        n, contexts: common samples, and the contexts they are about.
        deviation: standard deviation of the paired differences; that of contexts if contexts have several samples.
        needed: samples that separate the methods if their true difference is the one asked for; None if it is 0 or the
            differences do not vary.
        detectable: the smallest true difference that the samples at hand would show; None if they are too few to show
            any.
    """

    benchmark: str
    metric: str
    n: int
    contexts: int
    difference: Difference | None
    deviation: float | None
    needed: int | None
    detectable: float | None


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print how many samples would separate two methods. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench report power",
        description="How many samples would separate two methods, at the variance of their paired differences.\n\n"
        + SIDES,
        epilog="examples:\n  kvbench report power snapkv:0.2 ada_snapkv:0.2 --difference 0.02",
    )
    add_sides(parser)
    parser.add_argument("--difference", type=float, help="the difference to detect; default: the observed one")
    parser.add_argument("--power", type=float, default=0.8, help="chance to detect it; default: 0.8")
    parser.add_argument("--alpha", type=float, default=0.05, help="chance of a false alarm; default: 0.05")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="what is printed; default: table")
    arguments = parser.parse_args(argv)
    for name, usual in (("power", 0.8), ("alpha", 0.05)):
        value = getattr(arguments, name)
        if not 0 < value < 1:
            raise ValueError(f"--{name} {value:g}: a number between 0 and 1, such as {usual:g}")
    if arguments.difference is not None and not 0 < abs(arguments.difference) <= 1:
        raise ValueError(f"--difference {arguments.difference:g}: scores are in [0, 1], such as 0.02 for 2 points")
    chosen = pairs(arguments.a, arguments.b, arguments.runs, arguments.benchmark)
    rows = [power(pair, arguments.metric, arguments.difference, arguments.power, arguments.alpha) for pair in chosen]
    if arguments.format == "json":
        print(json.dumps(rows, indent=2))
        return 0
    a, b = (one_line(title(run, chosen[0])) for run in chosen[0])
    print(f"## {a} (A) against {b} (B)\n")
    print(markdown([_cells(row, arguments.difference) for row in rows]))
    asked = "the observed difference" if arguments.difference is None else f"a difference of {arguments.difference:g}"
    print(
        f"\nneeded: samples for {asked} to be significant ({arguments.alpha:g}, two-sided) with a chance of "
        f"{arguments.power:.0%}. detectable: the\nsmallest true difference that the samples at hand show with this "
        "chance. The observed difference is itself uncertain:\nplan with --difference."
    )
    return 0


def power(
    pair: Pair, metric: str | None = None, difference: float | None = None, power: float = 0.8, alpha: float = 0.05
) -> Power:
    """Return how many samples would separate the runs of a pair, and what difference theirs would show."""
    metric = check_metric(pair, score_names(pair), metric)
    scores = matrix(pair, metric)
    sums, sizes = scores.strata(0, [1])
    n, contexts = int(sizes.sum()), int((sizes > 0).sum())
    observed = paired_difference(*pair, metric)
    result: Power = {
        "benchmark": pair[0].manifest["label"]["benchmark"],
        "metric": metric,
        "n": n,
        "contexts": contexts,
        "difference": observed,
        "deviation": None,
        "needed": None,
        "detectable": None,
    }
    if observed is None or contexts < 2:
        return result
    variance = float(variances(sums, sizes)[0][0]) * contexts / (contexts - 1)  # of the mean
    deviation = math.sqrt(variance * contexts)  # of a context
    wanted = abs(observed["mean"] if difference is None else difference)
    result["deviation"] = round(deviation, 10)
    if deviation > 1e-12:
        reach, tail = _reach(power, alpha)
        spare = contexts - tail**2 / 2
        result["detectable"] = round(reach * deviation / math.sqrt(spare), 10) if spare > 0 else None
        if wanted > 1e-12:
            needed = (reach * deviation / wanted) ** 2 + tail**2 / 2  # contexts
            result["needed"] = math.ceil(needed * n / contexts)
    return result


def _reach(power: float, alpha: float) -> tuple[float, float]:
    """Return by how many standard errors a difference is detected, and the quantile of the test."""
    tail = NormalDist().inv_cdf(1 - alpha / 2)
    return tail + NormalDist().inv_cdf(power), tail


def _cells(row: Power, difference: float | None) -> dict[str, str]:
    return {
        "dataset": row["benchmark"],
        "score": row["metric"],
        "n": str(row["n"]),
        "contexts": str(row["contexts"]),
        "Δ A − B [95%]": interval(row["difference"]),
        "s": number(row["deviation"], "{:.3f}"),
        "needed": number(row["needed"], "{:,.0f}"),
        "detectable": number(row["detectable"], "{:.3f}"),
    }


if __name__ == "__main__":
    sys.exit(main())
