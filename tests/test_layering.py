"""Imports go downwards only, the light modules stay light, and the folder `kernels/` misleads nobody."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"kvbench": ROOT / "kvbench", "kvbench_kernels": ROOT / "kernels" / "kvbench_kernels"}

# The arrows of the house: what each room imports of this project, besides itself. Exactly these exist, none more, none
# fewer. "kvbench_kernels" is the package of that name, the others are modules or packages of kvbench.
# `from kvbench import __version__` is allowed everywhere.
ARROWS: dict[str, set[str]] = {
    "common": set(),
    "encoding": set(),
    "metrics": set(),
    "kvbench_kernels": set(),
    "methods": {"common"},
    "models": {"common"},
    "store": {"common"},
    "data": {"common"},
    "config": {"common", "methods", "models"},
    "report": {"benchmarks", "common", "config", "store"},
    "cache": {"kvbench_kernels", "methods"},
    "status": {"common", "config", "store"},
    "benchmarks": {"common", "data", "encoding", "metrics"},
    "engine": {"cache", "common", "kvbench_kernels", "methods"},
    "prompts": {"benchmarks", "common", "config", "encoding", "models"},
    "api": {"common", "config", "engine", "methods", "models", "prompts"},
    "__init__": {"api"},
    "run": {
        "benchmarks", "common", "config", "engine", "kvbench_kernels", "methods", "models", "prompts",
        "report", "store",
    },
    "profile": {
        "common", "config", "engine", "kvbench_kernels", "methods", "models", "prompts", "report", "run",
        "store",
    },
    "cli": {"common", "config", "run"},
    "sweep": {"cli", "common", "config", "prompts", "run", "store"},
    "__main__": {"cli"},
}  # fmt: skip
HEAVY = {"torch", "transformers", "accelerate", "gguf", "safetensors", "flash_attn", "kvbench_kernels"}
_LIGHT = (
    "__init__", "common", "config", "encoding", "metrics", "data", "benchmarks", "store", "report", "status",
)  # fmt: skip
FORBIDDEN = {
    **dict.fromkeys(_LIGHT, HEAVY),
    "kvbench_kernels": {"transformers", "accelerate", "hydra", "omegaconf"},
}
ONLY = {"methods": {"torch", "numpy", "omegaconf", "hydra"} | set(sys.stdlib_module_names)}


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Return the dotted names that `source` imports anywhere, functions included, relative ones resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            # `from kvbench import engine` imports a module; what `from torch import nn` imports does not matter
            names |= {f"{stem}.{alias.name}" for alias in node.names} if part_of(stem) is not None else {stem}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names - {"kvbench.__version__"}


def part_of(name: str) -> str | None:
    """Return which part of this project a dotted name belongs to; None for other people's modules."""
    top, _, rest = name.partition(".")
    if top == "kvbench":
        return rest.split(".")[0] or "__init__"
    return top if top in SOURCES else None


def violations(part: str, source: str, module: str, is_package: bool) -> list[str]:
    """Return one line per import in `source` that the tables above do not allow for `part`."""
    wrong = []
    for name in sorted(imports(source, module, is_package)):
        target, top = part_of(name), name.split(".")[0]
        if target is not None:
            fine = target == part or target in ARROWS[part]
        else:
            fine = top not in FORBIDDEN.get(part, set()) and (part not in ONLY or top in ONLY[part])
        if not fine:
            wrong.append(f"{module} imports {name}")
    return wrong


def modules() -> dict[str, tuple[Path, str]]:
    """Return {dotted module name: (file, part)} of all Python files of the two packages."""
    files = {}
    for package, folder in SOURCES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            part = package if package == "kvbench_kernels" else parts[1]
            files[".".join(parts).removesuffix(".__init__")] = (file, part)
    return files


def test_the_table_lists_exactly_the_arrows_that_exist() -> None:
    arrows: dict[str, set[str]] = {}
    for module, (file, part) in modules().items():
        names = imports(file.read_text(encoding="utf-8"), module, file.name == "__init__.py")
        targets = {target for name in names if (target := part_of(name)) is not None}
        arrows[part] = arrows.get(part, set()) | (targets - {part})
    assert {"store", "methods", "cache", "engine", "kvbench_kernels"} <= set(arrows), "the walk missed something"
    assert arrows == ARROWS
    assert len(arrows) <= 25 and sum(map(len, arrows.values())) <= 75, "more rooms or arrows than a reader can hold"


def test_the_table_has_no_cycle() -> None:
    below: set[str] = set()
    while set(ARROWS) - below:
        ready = {part for part, targets in ARROWS.items() if part not in below and targets <= below}
        assert ready, f"these import each other: {sorted(set(ARROWS) - below)}"
        below |= ready


def module_graph(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Return the modules that each module imports, given {dotted name: (source, whether it is a package)}."""
    graph: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        # a name is a module or a name in one: `from kvbench.cache import rows`, `from kvbench.cache.rows import Row`
        targets = {n if n in sources else n.rpartition(".")[0] for n in imports(source, module, is_package)}
        graph[module] = targets & set(sources)
    return graph


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for type checkers alone count as well."""
    files = {module: file for module, (file, _) in modules().items()}
    sources = {name: (file.read_text(encoding="utf-8"), file.name == "__init__.py") for name, file in files.items()}
    graph = module_graph(sources)
    assert sum(map(len, graph.values())) > 300, "the walk missed something"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of a circle


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from kvbench.cache.b import x", "from kvbench.cache.a import y"),
        ("from kvbench.cache import b", "from . import a"),
        ("import kvbench.cache.b", "if TYPE_CHECKING:\n    from kvbench.cache.a import y"),
        ("def f():\n    from .b import x", "from kvbench.cache.a import y"),
    ],
)
def test_the_walk_finds_circles(first: str, second: str) -> None:
    sources = {"kvbench.cache": ("", True), "kvbench.cache.a": (first, False), "kvbench.cache.b": (second, False)}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(module_graph(sources)).prepare()


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downwards(module: str) -> None:
    file, part = modules()[module]
    assert violations(part, file.read_text(encoding="utf-8"), module, file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("part", "module", "line"),
    [
        ("cache", "kvbench.cache.ragged", "from kvbench.engine.decode import loop"),
        ("cache", "kvbench.cache.ragged", "from kvbench import engine"),
        ("cache", "kvbench.cache.ragged", "from ..engine import decode"),
        ("cache", "kvbench.cache.ragged", "from .. import engine"),
        ("cache", "kvbench.cache.ragged", "def f():\n    import kvbench.engine"),
        ("cache", "kvbench.cache.ragged", "importlib.import_module('kvbench.engine.decode')"),
        ("engine", "kvbench.engine.decode", "import kvbench"),
        ("methods", "kvbench.methods.select", "from transformers import Cache"),
        ("methods", "kvbench.methods.select", "from kvbench.cache import RaggedCache"),
        ("metrics", "kvbench.metrics.rouge", "def f():\n    from torch import nn"),
        ("report", "kvbench.report.table", "from kvbench.run.runner import run"),
        ("report", "kvbench.report.table", "import kvbench_kernels"),
        ("kvbench_kernels", "kvbench_kernels.load", "import kvbench.common.paths"),
    ],
)
def test_the_walk_sees_forbidden_imports(part: str, module: str, line: str) -> None:
    assert len(violations(part, line, module, is_package=False)) == 1


@pytest.mark.parametrize(
    ("part", "module", "line"),
    [
        (
            "cache",
            "kvbench.cache.ragged",
            "from . import masked\nfrom kvbench.cache.base import x\nimport torch",
        ),
        ("engine", "kvbench.engine", "from .decode import loop\nfrom ..cache import RaggedCache"),
        ("store", "kvbench.store.run", "from kvbench import __version__\nimport yaml"),
    ],
)
def test_the_walk_lets_allowed_imports_pass(part: str, module: str, line: str) -> None:
    assert violations(part, line, module, is_package=module == "kvbench.engine") == []


def run_python(code: str) -> str:
    """Run `code` in the repository root, which puts the folder `kernels/` on sys.path; return stdout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "kvbench",
        "kvbench.config",
        "kvbench.store",
        "kvbench.report.table",
        "kvbench.status.__main__",
        "kvbench.benchmarks.needle",
    ],
)
def test_light_modules_load_no_torch(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    assert json.loads(run_python(code)) == []


def test_the_folder_kernels_is_not_taken_for_the_package_of_that_name() -> None:
    """A model is compressed next to the folder, and transformers does not say that the package is there.

    transformers 5.0 raises instead, because the folder has no version. It looks for the package only when flash
    attention is asked for without being installed, or for checkpoints of the kinds EETQ and MXFP4.
    """
    installed = any(distribution.metadata["Name"] == "kernels" for distribution in importlib.metadata.distributions())
    code = """
import importlib.util
import kvbench, torch
from packaging.version import InvalidVersion
from transformers.utils import is_kernels_available

print(importlib.util.find_spec("kernels") is not None)
try:
    print(is_kernels_available())
except InvalidVersion:
    print(False)
model = kvbench.load_model("tiny").model
with kvbench.compressed(model, "snapkv", 70) as handle:
    model(torch.arange(80)[None])
print(max(handle.cache.kept[0]))
"""
    assert run_python(code).split() == ["True", str(installed), "70"]


def test_names_of_test_files_are_unique() -> None:
    """pytest imports test files by their base name, so that the second of two would not be collected."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
