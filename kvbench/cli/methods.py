"""`kvbench methods`: the methods in conf/method with their parts and dials, read from the YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.common.command import Parser, command
from kvbench.config import has_budget, method, options

_PAPER = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Dial:
    """A setting of a method: `method.<name>=`, its default as written in the YAML, and the comment next to it."""

    name: str
    default: str
    help: str


@dataclass(frozen=True)
class Description:
    """A method as its YAML file, or the files of a combination, describe it."""

    name: str
    summary: str
    paper: str
    phase: str
    budget: bool
    parts: Mapping[str, str]
    dials: Sequence[Dial]

    def text(self) -> str:
        """Return all of it for a terminal."""
        lines = [self.name, *(f"  {line}" for line in self.summary.splitlines())]
        lines.append(f"  phase: {self.phase}; budget: {'applies' if self.budget else 'does not apply'}")
        if self.parts:
            lines.append("  parts: " + ", ".join(f"{part} {name}" for part, name in self.parts.items()))
        words = [(f"method.{dial.name}={dial.default}", dial.help) for dial in self.dials]
        width = max((len(setting) for setting, _ in words), default=0)
        lines += [f"    {setting:<{width}}  {help}".rstrip() for setting, help in words]
        return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of all methods, or all that is known about those named. Returns the exit code."""
    parser = Parser(prog="kvbench methods", description="List the methods, or describe those that are named.")
    parser.add_argument("names", nargs="*", metavar="METHOD", help="methods to describe with their parts and dials")
    names = parser.parse_args(argv).names
    if names:
        print("\n\n".join(describe(name).text() for name in names))
        return 0
    from tabulate import tabulate

    rows = [
        [
            known.name,
            known.phase,
            "yes" if known.budget else "no",
            known.paper,
            ", ".join(f"{part} {target}" for part, target in known.parts.items()) or "none",
            ", ".join(f"{dial.name}={dial.default}" for dial in known.dials),
        ]
        for known in map(describe, sorted(options("method")))
    ]
    headers = ["method", "phase", "budget", "arXiv", "parts", "dials"]
    print(tabulate(rows, headers, maxcolwidths=[None, 12, None, None, 34, 34], disable_numparse=True))
    print("\nOne method with the meaning of its dials: kvbench methods NAME")
    return 0


def describe(name: str) -> Description:
    """Return what the YAML file of a method says. Raises ValueError if there is no such method."""
    known = method(name)
    matches = [_PAPER.search(method(factor).summary) for factor in known.name.split("+")]
    parts = {part: _class_name(node) for part, node in known.parts.items()}
    return Description(
        name=known.name,
        summary=known.summary,
        paper=", ".join(match[1] for match in matches if match),
        phase=_phase(parts),
        budget=has_budget(known.parts),
        parts=parts,
        dials=[Dial(dial, _default(known.notes[dial][0]), known.notes[dial][1]) for dial in known.dials],
    )


def _default(value: str) -> str:
    """Return a default as written; of one that a model may hint, the value without a hint; of a file, its path."""
    file = re.fullmatch(r'"?file:([^;]*).*', value)
    value = file[1] if file else value
    hinted = re.fullmatch(r"\$\{oc\.select:[\w.]+, ?(.*)\}", value)
    return hinted[1] if hinted else value


def _class_name(part: Mapping[str, Any]) -> str:
    return str(part.get("_target_")).rpartition(".")[2]


def _phase(parts: Mapping[str, str]) -> str:
    """Return when the method acts."""
    if "look" in parts:
        return "every decode step"
    if "decode" in parts:
        return "prefill and every decode step"
    if "store" in parts:
        return "storage" if "select" not in parts else "prefill and storage"
    return "prefill" if "select" in parts else "none"
