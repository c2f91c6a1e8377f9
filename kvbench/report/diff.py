"""`kvbench report diff A B`: the samples on which two methods disagree, the worst for A first, with both answers."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TypedDict, cast

import numpy as np

from kvbench.common.command import Parser, command
from kvbench.common.text import one_line
from kvbench.report.choose import SIDES, Pair, add_sides, pairs
from kvbench.report.difference import paired_difference
from kvbench.report.formats import csv_text, interval
from kvbench.report.measured import score_names
from kvbench.report.paired import matrix
from kvbench.report.runs import check_metric, title
from kvbench.store import Record, load_run

_LONGEST = 300  # characters of an answer on the console
_FORMATS = ("text", "csv", "json")


class Disagreement(TypedDict):
    """One sample with different scores. An answer is None where there is none; `why` says why."""

    benchmark: str
    sample: str
    score_a: float | None
    score_b: float | None
    difference: float | None
    answers: list[str]
    answer_a: str | None
    answer_b: str | None
    why: str | None


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print where two methods disagree. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench report diff",
        description="Where two methods disagree: sample by sample, the worst for A first, with both answers.\n\n"
        + SIDES,
        epilog="examples:\n  kvbench report diff snapkv:0.1 fullkv --benchmark longbench",
    )
    add_sides(parser)
    parser.add_argument("--limit", type=int, default=20, help="samples per benchmark; 0: all; default: 20")
    parser.add_argument("--format", choices=_FORMATS, default="text", help="what is printed; default: text")
    arguments = parser.parse_args(argv)
    if arguments.limit < 0:
        raise ValueError(f"--limit {arguments.limit}: a number of samples, or 0 for all")
    chosen = pairs(arguments.a, arguments.b, arguments.runs, arguments.benchmark)
    limit = arguments.limit or None
    if arguments.format == "text":
        for pair in chosen:
            print("\n".join(_text(pair, arguments.metric, limit)), end="\n\n")
        return 0
    lines = [line for pair in chosen for line in list(disagreements(pair, arguments.metric))[:limit]]
    if arguments.format == "json":
        print(json.dumps(lines, indent=2))
    elif lines:
        print(csv_text([{**line, "answers": " | ".join(line["answers"])} for line in lines]), end="")
    return 0


def disagreements(pair: Pair, metric: str | None = None) -> Iterator[Disagreement]:
    """Yield the samples whose scores differ, the worst for A first.

    Samples that only A lacks an answer to come before all others, those that only B lacks last.
    """
    metric = check_metric(pair, score_names(pair), metric)
    scores = matrix(pair, metric)
    a, b = scores.scores
    difference = np.where(np.isnan(a), -np.inf, np.where(np.isnan(b), np.inf, a - b))
    differ = ~(np.isnan(a) & np.isnan(b)) & (difference != 0)
    order = sorted(np.flatnonzero(differ).tolist(), key=lambda at: (difference[at], scores.ids[at]))
    records = [{record["id"]: record for record in load_run(run.path).samples} for run in pair] if order else []
    for at in order:
        name = scores.ids[at]
        ours, theirs = (side.get(name) for side in records)
        known = ours or theirs
        yield {
            "benchmark": pair[0].manifest["label"]["benchmark"],
            "sample": name,
            "score_a": _number(a[at]),
            "score_b": _number(b[at]),
            "difference": _number(difference[at]),
            "answers": cast(list[str], known.get("answers", [])) if known else [],
            "answer_a": _answer(ours),
            "answer_b": _answer(theirs),
            "why": _why(ours) or _why(theirs),
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _answer(record: Record | None) -> str | None:
    return None if record is None or record["status"] != "ok" else cast(str, record.get("prediction"))


def _why(record: Record | None) -> str | None:
    """Return why a record has no answer; None if it has one."""
    if record is None:
        return "not run"
    return None if record["status"] == "ok" else f"{record['status']}: {record.get('error') or 'no answer'}"


def _text(pair: Pair, metric: str | None, limit: int | None) -> list[str]:
    metric = check_metric(pair, score_names(pair), metric)
    lines = list(disagreements(pair, metric))
    worse = sum(line["difference"] is not None and line["difference"] < 0 for line in lines)
    better = sum(line["difference"] is not None and line["difference"] > 0 for line in lines)
    lost = [sum(line[key] is None for line in lines) for key in ("score_a", "score_b")]
    total = int((~np.isnan(matrix(pair, metric).scores)).all(0).sum())
    a, b = (one_line(title(run, pair)) for run in pair)
    text = [
        f"## {pair[0].manifest['label']['benchmark']}: {a} (A) against {b} (B)",
        "",
        f"{worse + better} of {total} common samples differ in {one_line(metric)}: {worse} worse, {better} better; "
        f"mean {interval(paired_difference(*pair, metric))}",
    ]
    if any(lost):
        text.append(f"without an answer or a score: {lost[0]} of A alone, {lost[1]} of B alone")
    for line in lines[:limit]:
        shown = " " if line["difference"] is None else f" {line['difference']:+.2f} "
        text += ["", f"{one_line(line['sample'])}{shown}(A {_score(line['score_a'])}, B {_score(line['score_b'])})"]
        text += _wrapped("expected", " | ".join(line["answers"]))
        text += _wrapped("A", line["answer_a"] if line["answer_a"] is not None else f"– ({line['why']})")
        text += _wrapped("B", line["answer_b"] if line["answer_b"] is not None else f"– ({line['why']})")
    if limit is not None and len(lines) > limit:
        text += ["", f"… and {len(lines) - limit} more; --limit 0 shows all"]
    return text


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.2f}"


def _wrapped(label: str, text: str) -> list[str]:
    clean = one_line(text)
    clean = clean if len(clean) <= _LONGEST else f"{clean[:_LONGEST]}…"
    return textwrap.wrap(
        clean or "(empty)", 110, initial_indent=f"  {label:<9}", subsequent_indent=" " * 11, break_long_words=True
    )


if __name__ == "__main__":
    sys.exit(main())
