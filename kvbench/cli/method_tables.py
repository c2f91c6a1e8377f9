"""The methods as their YAML files describe them, and tables of them for a terminal, docs/guide.md, docs/methods.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.cli.class_source import defines
from kvbench.common.files import write_atomic
from kvbench.common.paths import conf_dir
from kvbench.config import has_budget, method, options

_PAPER = re.compile(r"(arXiv) (\d{4}\.\d{4,5})|(OpenReview) (\w+)")
_ADDRESS = {"arXiv": "https://arxiv.org/abs/", "OpenReview": "https://openreview.net/forum?id="}
_CITATION = re.compile(r" \([^()]*\b20\d\d\b[^()]*\)")
_REPOSITORY = re.compile(r"\b([\w.-]+/[\w.-]+) ([0-9a-f]{7,40})\b")
_STORE = "kvbench.methods.storage.Store"  # its own `family` says that bytes cannot choose the form
MARKS = "<!-- kvbench methods --write: begin -->", "<!-- kvbench methods --write: end -->"


@dataclass(frozen=True)
class Dial:
    """A setting of a method: `method.<name>=`, its default as written in the YAML, and the comment next to it."""

    name: str
    default: str
    help: str


@dataclass(frozen=True)
class Description:
    """A method as its YAML file, or the files of a combination, describe it.

    Attributes:
        summary: the comment at the top of the file.
        gist: its first sentence, without the paper.
        paper, code, equal: the paper, the code that it was compared with, and what is equal to it.
        acts: when it changes the cache: "prefill", "decode", "both" or "never".
        budget: what a budget counts: "tokens kept, or bytes", "tokens read", "none", or "none, or bytes".
        storage: the form in which keys and values are held.
        parts: part → name of its class.
    """

    name: str
    summary: str
    gist: str
    paper: str
    code: str
    equal: str
    acts: str
    budget: str
    storage: str
    parts: Mapping[str, str]
    dials: Sequence[Dial]

    def text(self) -> str:
        """Return all of it for a terminal."""
        lines = [self.name, *(f"  {line}" for line in self.summary.splitlines())]
        lines.append(f"  acts: {self.acts}; budget: {self.budget}; storage: {self.storage}")
        lines += [f"  paper: {self.paper}"] if self.paper else []
        lines += [f"  reference: {self.code}; equal to it: {self.equal}"] if self.code else []
        if self.parts:
            lines.append("  parts: " + ", ".join(f"{part} {name}" for part, name in self.parts.items()))
        words = [(f"method.{dial.name}={dial.default}", dial.help) for dial in self.dials]
        width = max((len(setting) for setting, _ in words), default=0)
        lines += [f"    {setting:<{width}}  {help}".rstrip() for setting, help in words]
        return "\n".join(lines)


def describe(name: str) -> Description:
    """Return what the YAML file of a method says. Raises ValueError if there is no such method."""
    known = method(name)
    about = [(factor, known.about.get(factor, {})) for factor in known.name.split("+")]
    papers = [entry.get("paper") or _cited(method(factor).summary) for factor, entry in about]
    parts = {part: str(node.get("_target_")).rpartition(".")[2] for part, node in known.parts.items()}
    return Description(
        name=known.name,
        summary=known.summary,
        gist=_gist(known.summary),
        paper="; ".join(filter(None, papers)),
        code="; ".join(entry["code"] for _, entry in about if "code" in entry),
        equal="; ".join(entry["equal"] for _, entry in about if "equal" in entry),
        acts=_acts(known.name, known.parts, known.dials),
        budget=_budget(known.parts),
        storage=parts.get("store", "plain"),
        parts=parts,
        dials=[Dial(dial, _default(known.notes[dial][0]), known.notes[dial][1]) for dial in known.dials],
    )


def _cited(summary: str) -> str:
    match = _PAPER.search(summary)
    return match[0] if match else ""


def _gist(summary: str) -> str:
    """Return the first sentence, without the paper."""
    text = _CITATION.sub("", " ".join(summary.split()))
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0].rstrip(".")


def _acts(name: str, parts: Mapping[str, Any], dials: Mapping[str, Any]) -> str:
    """Return when a method with the defaults of its dials changes what is stored, or what is read."""
    dial = re.fullmatch(r"\$\{\.\.(\w+)\}", str(parts.get("decode", {}).get("phase")))
    phase = dials.get(dial[1]) if dial else "both"
    evicts_later = "decode" in parts and phase != "prefill"
    at_prefill = ("select" in parts and phase != "decode") or not parts.keys().isdisjoint({"feed", "store"})
    if evicts_later or "look" in parts or ("store" in parts and _encodes_answers(name)):
        return "both" if at_prefill else "decode"
    return "prefill" if at_prefill else "never"


def _encodes_answers(name: str) -> bool:
    """Return True if a store of a method encodes generated tokens too; the YAML of another one says `acts: prefill`."""
    factors = [method(factor) for factor in name.split("+")]
    return any("store" in known.parts and known.about.get(known.name, {}).get("acts") != "prefill" for known in factors)


def _budget(parts: Mapping[str, Any]) -> str:
    """Return what a budget of a method counts."""
    if has_budget(parts):
        return "tokens read" if "look" in parts else "tokens kept, or bytes"
    if "store" in parts and "select" not in parts and defines(str(parts["store"].get("_target_")), "family", _STORE):
        return "none, or bytes"
    return "none"


def _default(value: str) -> str:
    """Return a default as written; of one that a model may hint, the value without a hint; of a file, its path."""
    file = re.fullmatch(r'"?file:([^;]*).*', value)
    value = file[1] if file else value
    hinted = re.fullmatch(r"\$\{oc\.select:[\w.]+, ?(.*)\}", value)
    return (hinted[1] if hinted else value).replace("''", "")


Columns = Mapping[str, Callable[[Description], str]]


def _short_gist(known: Description) -> str:
    """Return the gist without the name that it begins with, cut at a word to fit a column of the terminal."""
    text = re.sub(r"^[\w-]+: ", "", known.gist)
    return textwrap.shorten(text, _GIST, placeholder=" …")


def _main_paper(known: Description) -> str:
    return _cited(known.paper) or _cited(known.summary)


def _linked(paper: str) -> str:
    """Return a citation with links in Markdown."""
    return _PAPER.sub(lambda m: f"[{m[0]}]({_ADDRESS[m[1] or m[3]]}{m[2] or m[4]})", paper)


def _code_link(known: Description) -> str:
    return _REPOSITORY.sub(r"[\1 \2](https://github.com/\1/tree/\2)", known.code)


_BUDGETS = {"tokens kept, or bytes": "kept", "tokens read": "read", "none, or bytes": "bytes", "none": "none"}
_GIST = 57  # characters
_TERMINAL: Columns = {
    "method": lambda known: known.name,
    "what it does": _short_gist,
    "acts": lambda known: known.acts,
    "budget": lambda known: _BUDGETS[known.budget],
    "paper": lambda known: _main_paper(known).rpartition(" ")[2],
}
_SHORT: Columns = {
    "`method=`": lambda known: f"`{known.name}`",
    "what it does": lambda known: known.gist,
    "acts": lambda known: known.acts,
    "budget": lambda known: known.budget,
    "paper": lambda known: _linked(_main_paper(known)),
}
_FULL: Columns = {
    "method": lambda known: f"[`{known.name}`](#{known.name})",
    "acts": lambda known: known.acts,
    "budget": lambda known: known.budget,
    "storage": lambda known: known.storage,
    "paper": lambda known: _linked(known.paper),
    "reference": _code_link,
    "equal to it": lambda known: known.equal,
}


def terminal(methods: Sequence[Description]) -> str:
    """Return the table of methods for a terminal: a line for each."""
    from tabulate import tabulate

    rows = [[column(known) for column in _TERMINAL.values()] for known in methods]
    return str(tabulate(rows, list(_TERMINAL), disable_numparse=True))


def short_table(methods: Sequence[Description]) -> str:
    """Return the table of docs/guide.md."""
    return _pipes(list(_SHORT), [[column(known) for column in _SHORT.values()] for known in methods])


def markdown(methods: Sequence[Description]) -> str:
    """Return the table of docs/methods.md, followed by a section with the dials of each method."""
    table = _pipes(list(_FULL), [[column(known) for column in _FULL.values()] for known in methods])
    return "\n\n".join([table, *(_section(known) for known in methods)])


def _section(known: Description) -> str:
    lines = [f"### {known.name}", "", " ".join(known.summary.split())]
    if known.parts:
        lines += ["", "Parts: " + ", ".join(f"{part} `{name}`" for part, name in known.parts.items()) + "."]
    if known.dials:
        rows = [[f"`{dial.name}`", f"`{dial.default}`" if dial.default else "", dial.help] for dial in known.dials]
        lines += ["", _pipes(["dial", "default", "meaning"], rows)]
    return "\n".join(lines)


def _pipes(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; a | in a cell is escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, ["---"] * len(headers), *cells])


def written() -> dict[Path, str]:
    """Return {file: its text with the table of now between the marks} of docs/guide.md and docs/methods.md.

    Raises:
        ValueError: a file or its marks are missing.
    """
    root = conf_dir().parent
    methods = [describe(name) for name in sorted(options("method"))]
    tables = {root / "docs" / "guide.md": short_table(methods), root / "docs" / "methods.md": markdown(methods)}
    return {path: _between_marks(path, table) for path, table in tables.items()}


def write() -> list[Path]:
    """Write the tables into docs/guide.md and docs/methods.md, and return the files. Raises as `written` does."""
    texts = written()
    for path, text in texts.items():
        write_atomic(path, text)
    return list(texts)


def _between_marks(path: Path, table: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"--write: there is no {path}; run it in a checkout of kvbench") from None
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"--write: {path} must hold a line {begin} and after it a line {end}")
    return f"{text[: text.index(begin)]}{begin}\n\n{table}\n\n{text[text.index(end) :]}"
