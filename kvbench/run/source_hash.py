"""Hashes of source files that change with what the code does, not with its comments, docstrings or formatting."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

_CPP_TOKEN = re.compile(
    r"""
      (?P<comment> //[^\n]* | /\*.*?\*/ )
    | R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"      # raw string
    | "(?:\\.|[^"\\\n])*"                       # string
    | \d(?:'?[\w.]|(?<=[eEpP])[+-])*            # number, with digit separators
    | [^\W\d]\w*                                # name
    | '(?:\\.|[^'\\\n])*'                       # character
    | \S                                        # operator or bracket
    """,
    re.VERBOSE | re.DOTALL,
)
_CPP_SUFFIXES = (".cpp", ".cu", ".cuh", ".h", ".hpp")


def hash_sources(files: Iterable[Path]) -> str:
    """Return 12 hex digits over what the files do, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(_content(file, file.stat().st_mtime_ns))
    return digest.hexdigest()[:12]


def imported_files(module: str, *packages: str) -> dict[str, Path]:
    """Return {module name: file} of `module` and all modules of `packages` that it imports, directly or not."""
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _module_file(name)
        if name in files or file is None:
            continue
        files[name] = file
        parent = name.rpartition(".")[0]
        near = name if file.name == "__init__.py" else parent
        names = [parent, *_imported_names(file, near, file.stat().st_mtime_ns)]
        waiting += [other for other in names if any(_is_inside(other, package) for package in packages)]
    return files


@cache
def _content(file: Path, stamp: int) -> bytes:
    """Return what a file does as bytes. `stamp` is its time of change, so that an edited file is read again."""
    if file.suffix == ".py":
        return python_content(file.read_text(encoding="utf-8")).encode()
    if file.suffix in _CPP_SUFFIXES:
        return cpp_content(file.read_text(encoding="utf-8")).encode()
    return file.read_bytes()


def python_content(source: str) -> str:
    """Return the syntax tree of Python source as text, without statements that do nothing, such as docstrings.

    Unlike `ast.dump`, the text does not depend on the Python version: fields that are empty are left out.
    """
    return _tree_text(ast.parse(source))


def _tree_text(node: object) -> str:
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in ("kind", "type_ignores"))
        return (
            f"{type(node).__name__}({','.join(f'{k}={_tree_text(v)}' for k, v in fields if v is not None and v != [])})"
        )
    if isinstance(node, list):
        return f"[{','.join(_tree_text(item) for item in node if not _does_nothing(item))}]"
    return repr(node)


def _does_nothing(node: object) -> bool:
    """Return True for a statement without effect: a docstring, another bare constant, `pass`."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def cpp_content(source: str) -> str:
    """Return the tokens of C++ or CUDA source with one space between them; a directive has a line of its own."""
    lines: list[str] = []
    ends_directive = True
    for line in _without_comments(source.replace("\\\n", " ")).splitlines():
        tokens = " ".join(match[0] for match in _CPP_TOKEN.finditer(line))
        if not tokens:
            continue
        is_directive = tokens.startswith("#")
        if is_directive or ends_directive:
            lines.append(tokens)
        else:
            lines[-1] += f" {tokens}"
        ends_directive = is_directive
    return "\n".join(lines)


def _without_comments(source: str) -> str:
    return _CPP_TOKEN.sub(lambda match: " " if match["comment"] else match[0], source)


def _module_file(name: str) -> Path | None:
    """Return the source file of a module, or None if there is no such module or it has no source."""
    try:
        spec = find_spec(name) if name else None
    except (ImportError, AttributeError, ValueError):  # a name inside a module, not a module itself
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@cache  # the methods of a sweep share most of their files
def _imported_names(file: Path, package: str, stamp: int) -> list[str]:
    """Return the dotted names that a file imports; of `from a import b` both `a` and `a.b`, which may be a module.

    `stamp` is as of `_content`.
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
