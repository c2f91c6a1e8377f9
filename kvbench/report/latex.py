"""Tables as LaTeX for booktabs and xcolor, which pdfLaTeX, XeLaTeX and LuaLaTeX take without further packages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvbench.common.text import one_line
from kvbench.report.formats import LEFT, Cell, Cells

NEEDS = r"needs: \usepackage{booktabs,xcolor}; for a table that is too wide: \resizebox{\linewidth}{!}{…} of graphicx"
_SPELLED = {  # what LaTeX would obey, and what its plain fonts lack or show as something else
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": "$|$", '"': "{''}", "`": "{`}", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$",
    "…": r"\dots{}", "●": r"$\bullet$", "±": r"$\pm$", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "Δ": r"$\Delta$",
    "†": r"$\dagger$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "μ": r"$\mu$", "µ": r"$\mu$",
    "σ": r"$\sigma$",
}  # fmt: skip
_LETTERS = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿĆćČčŁłŃńŒœŚśŠšŹźŻżŽž")  # in all fonts
_MINUS = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)")


def latex(rows: Sequence[Cells]) -> str:
    """Return rows as a LaTeX table for the packages booktabs and xcolor."""
    columns = list(rows[0])
    align = "".join("l" if name in LEFT else "r" for name in columns)
    lines = [[latex_text(name) for name in columns], *([_cell(row[name]) for name in columns] for row in rows)]
    for line in lines:  # LaTeX would take a bracket or a star after the end of a row for an option of that end
        line[0] = f"{{}}{line[0]}" if line[0].startswith(("[", "*")) else line[0]
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )


def latex_tables(tables: Sequence[Sequence[Cells]]) -> str:
    """Return tables below each other."""
    return "\n\n\\bigskip\n\n".join(map(latex, tables))


def latex_comment(text: str) -> str:
    """Return a text as one LaTeX comment."""
    return f"% {one_line(text)}"


def latex_text(text: str) -> str:
    """Return a text as LaTeX that shows it as it is; letters that plain fonts lack become U+ and their number."""
    clean = _MINUS.sub("−", one_line(text))  # a hyphen before a number is a minus sign, and two are no dash
    return "".join("-{}" if clean.startswith("--", at) else _spelled(letter) for at, letter in enumerate(clean))


def _spelled(letter: str) -> str:
    if letter in _SPELLED or letter in _LETTERS or letter.isascii():
        return _SPELLED.get(letter, letter)
    return f"U+{ord(letter):04X}"


def _cell(text: str) -> str:
    shown = latex_text(text)
    if isinstance(text, Cell) and text.is_best:
        shown = rf"\textbf{{{shown}}}"
    return rf"\textcolor{{gray}}{{{shown}}}" if isinstance(text, Cell) and text.is_grey else shown
