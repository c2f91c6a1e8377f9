"""LaTeX tables of every kind: as many cells in each row, nothing that LaTeX would obey, and pdfLaTeX takes them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kvbench.report.__main__ import main
from kvbench.report.formats import Cell
from kvbench.report.latex import _LETTERS, _SPELLED, latex, latex_text
from tests.helpers.fake_runs import make_part, make_run, store_run

STRANGE = 'a_b 100% A&B #3 $x$ {y} \\input{z} ~^ <|> `q" a--b ?`!` [m] *s* é µ 日本 \x1b[2J'
_WRITTEN = r"\\(?:text(?:backslash|asciitilde|asciicircum|less|greater)\{\}|dots\{\}|[{}$&%#_])"
_MATHS = r"\$(?:-|\||\\[a-zA-Z]+)\$"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a benchmark and a suite whose categories, means and metrics have strange names."""
    outputs = tmp_path_factory.mktemp("strange")
    for method, budget in (("fullkv", "full"), ("ada_snapkv", "64"), ("ada_snapkv", "0.2B"), ("kivi", "full")):
        score = 1.0 if method == "fullkv" else None
        runs = [make_run(method, budget, score)]
        place = {"category": STRANGE, "means": {STRANGE: 2}, "macros": {"[m]": 1, STRANGE: 1}}
        runs += [make_part(method, budget, dataset, score or 0.5, **place) for dataset in ("qasper", "hotpotqa")]
        for run in runs:
            run.manifest["device"] = STRANGE
            for sample in run.samples:
                sample["scores"] |= {STRANGE: 0.25, "*s": 0.5}
            store_run(outputs / "runs", run)
    return outputs


def documents(outputs: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what the report prints and writes as LaTeX, by method and by bytes."""
    texts = []
    for by in ("method", "bytes"):
        out = outputs / by
        assert main([str(outputs / "runs"), "--format", "latex", "--by", by, "--out", str(out)]) == 0
        texts += [capsys.readouterr().out, *(file.read_text() for file in sorted(out.rglob("table.tex")))]
    return texts


def test_every_table_is_whole(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = documents(outputs, capsys)
    assert len(texts) == 6
    for text in texts:
        assert r"% needs: \usepackage{booktabs,xcolor}" in text
        body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\n\\end\{tabular\}", body, re.DOTALL)
        assert len(tables) == body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") > 0
        for align, inside in tables:
            assert [line for line in inside.splitlines() if line.startswith("\\")] == [
                r"\toprule", r"\midrule", r"\bottomrule"
            ]  # fmt: skip
            for row in inside.splitlines():
                if not row.startswith("\\"):
                    assert row.endswith(r" \\") and len(re.findall(r"(?<!\\)&", row)) == len(align) - 1
                    assert not row.startswith(("[", "*"))
                    assert not set(_left_over(row.removesuffix(r" \\"))) & set(r"\$#%_~^<>|`" + '"'), row


def _left_over(row: str) -> str:
    """Return what is left of a row without emphasis and all that is written on purpose."""
    row = re.sub(_WRITTEN, "", row)
    row = re.sub(_MATHS, "", row)
    row = row.replace("{`}", "").replace("{''}", "")
    return re.sub(r"\\textbf|\\textcolor\{gray\}", "", row)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.5 [-1.0, -1e-05]", "$-$0.5 [$-$1.0, $-$1e-05]"),
        ("avg-11", "avg-11"),
        ("a--b---", "a-{}-b-{}-{}-"),
        ("–", "--"),
        ("日é", "U+65E5é"),
    ],
)
def test_hyphens_minus_signs_and_letters(text: str, shown: str) -> None:
    assert latex_text(text) == shown


def test_a_row_begins_with_no_option_of_the_row_before() -> None:
    """LaTeX takes a star or a bracket after the end of a row, or after a rule, for its option."""
    rows = [{"[c": "[x]", "*d": "[y]"}, {"[c": "*s", "*d": "*t"}]
    lines = latex(rows).splitlines()
    assert lines[2:3] + lines[4:6] == [r"{}[c & *d \\", r"{}[x] & [y] \\", r"{}*s & *t \\"]


def test_emphasis() -> None:
    row = {"method": "a", "x": Cell("-1", is_best=True), "y": Cell("2%", is_best=True, is_grey=True)}
    assert r"a & \textbf{$-$1} & \textcolor{gray}{\textbf{2\%}} \\" in latex([row])


@pytest.mark.latex
def test_pdflatex_takes_every_table(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = "".join(sorted(_LETTERS)) + "".join(_SPELLED)
    body = "\n\n".join([*documents(outputs, capsys), latex([{letters: letters}])])
    head = r"\documentclass{article}\usepackage{booktabs,xcolor}\begin{document}"
    (tmp_path / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")
