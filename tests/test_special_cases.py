"""No code asks which method it has in front of it: a method is its parts, and a name is only for people.

The walk reads the source: comparisons with the names of methods, tables keyed by them, and checks for the class of a
part outside of that part's own file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kvbench.config import options

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "kvbench").rglob("*.py"))
PROTOCOLS = frozenset({"windowkv"})  # a protocol of LongBench has the name of its paper's method
METHODS = frozenset(options("method")) - PROTOCOLS
_TESTS_OF_TEXT = ("startswith", "endswith", "removeprefix", "removesuffix", "count", "find", "index")


def words(node: ast.AST) -> set[str]:
    """Return the strings that a node is, or that a literal list, tuple, set or dict has as items."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []
    keys = [key for key in node.keys if key is not None] if isinstance(node, ast.Dict) else []
    return set[str]().union(*(words(item) for item in [*items, *keys]))


def special_cases(source: str, methods: frozenset[str], parts: frozenset[str]) -> Iterator[str]:
    """Yield the lines of a source that depend on a method's name, or on the class of a part that it does not define."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        hits: set[str] = set()
        if isinstance(node, ast.Compare):
            hits = set[str]().union(*(words(side) for side in [node.left, *node.comparators])) & methods
        elif isinstance(node, ast.MatchValue):
            hits = words(node.value) & methods
        elif isinstance(node, ast.Dict):
            hits = words(node) & methods
        elif isinstance(node, ast.Subscript):
            hits = words(node.slice) & methods
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _TESTS_OF_TEXT:
                hits = set[str]().union(*(words(argument) for argument in node.args)) & methods
            if name in ("isinstance", "issubclass") and len(node.args) == 2:
                kinds = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                kinds |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
                hits = kinds & parts - own
        if isinstance(node, ast.MatchClass):
            hits = {n.id for n in ast.walk(node.cls) if isinstance(n, ast.Name)} & parts - own
        if hits:
            yield f"line {node.lineno}: {', '.join(sorted(hits))}"  # type: ignore[attr-defined]


@cache
def part_classes() -> frozenset[str]:
    """Return the names of the classes in the folders of parts."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "kvbench" / "methods").glob("*/*.py")]
    return frozenset(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))


def test_no_code_depends_on_the_name_of_a_method_or_the_class_of_a_part() -> None:
    assert len(FILES) > 200 and len(METHODS) > 20 and len(part_classes()) > 25
    hits = {
        str(file.relative_to(ROOT)): cases
        for file in FILES
        if (cases := list(special_cases(file.read_text(encoding="utf-8"), METHODS, part_classes())))
    }
    assert not hits


@pytest.mark.parametrize(
    "line",
    [
        "if method == 'snapkv': pass",
        "if 'kivi' != name: pass",
        "x = name in ('h2o', 'other')",
        "x = name not in {'quest'}",
        "match name:\n    case 'tova': pass",
        "window = {'snapkv': 32, 'h2o': 8}[name]",
        "window = table['pyramidkv']",
        "if name.startswith('prefixkv'): pass",
        "if isinstance(part, TopK): pass",
        "if isinstance(part, (int, select.TopK)): pass",
        "match part:\n    case TopK(): pass",
    ],
)
def test_the_walk_finds_special_cases(line: str) -> None:
    assert len(list(special_cases(line, METHODS, frozenset({"TopK"})))) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "full = Method('fullkv')",
        "method = load(folder, 'streaming_llm', sinks=0)",
        "if method.name == other.name: pass",
        "class TopK: ...\nisinstance(x, TopK)",
        "'''Say which method == snapkv.'''",
    ],
)
def test_the_walk_lets_other_uses_of_a_name_pass(line: str) -> None:
    assert list(special_cases(line, METHODS, frozenset({"TopK"}))) == []
