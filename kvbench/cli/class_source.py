"""Questions about a class that its source answers. Importing it would load torch, which takes seconds."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path


def defines(target: str, name: str, stop: str) -> bool:
    """Return True if a class, or one that it inherits from, has a method called `name`.

    Args:
        target: the dotted name of the class.
        stop: the dotted name of the base class whose own method does not count.
    """
    module, _, kind = target.rpartition(".")
    source = _source(module)
    if target == stop or source is None:
        return False
    tree = ast.parse(source)
    node = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind), None)
    imported = {
        alias.asname or alias.name: f"{each.module}.{alias.name}"
        for each in tree.body
        if isinstance(each, ast.ImportFrom) and not each.level
        for alias in each.names
    }
    if node is None:  # a module may pass on what another defines
        return kind in imported and defines(imported[kind], name, stop)
    if any(isinstance(each, ast.FunctionDef) and each.name == name for each in node.body):
        return True
    bases = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base).partition(".") for base in node.bases]
    return any(defines(imported.get(first, f"{module}.{first}") + dot + rest, name, stop) for first, dot, rest in bases)


def _source(module: str) -> str | None:
    """Return the text of a module; None if there is no such module or it has no source."""
    try:
        spec = find_spec(module) if module else None
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_text(encoding="utf-8")
