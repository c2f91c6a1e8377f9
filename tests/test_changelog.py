"""The table of versions in CHANGELOG.md: it lists every version constant of the code, with its value."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import yaml

import kvbench

ROOT = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"_?([A-Z]+_)*(VERSIONS?|SCHEMA|RECIPE|CONVERSION|DRAWING)")
_ROW = re.compile(r"^\| `([\w.]+)` \| ([\w.-]+) \| .+ \|$", re.MULTILINE)


def constants() -> dict[str, Any]:
    """Return {dotted name: value} of the constants of kvbench whose name says that they are versions."""
    values = {}
    for file in sorted((ROOT / "kvbench").rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
            for name in sorted(filter(_NAME.fullmatch, names)):
                values[f"{module}.{name}"] = getattr(importlib.import_module(module), name)
    return values


def shown(value: Any) -> str:
    """Return a value as the table has it; versions of several metrics by the number that they have in common."""
    if isinstance(value, dict):
        [value] = set(value.values())
    return str(value)


def test_the_table_of_versions_is_that_of_the_code() -> None:
    table = dict(_ROW.findall((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert table == {name: shown(value) for name, value in constants().items()}


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kvbench.__version__ and citation["license"] == "Apache-2.0"
