"""The maps of the code, in docstrings of packages and in docs/guide.md, name what exists, and leave nothing out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    file.parent: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False) or ""
    for folder in ("kvbench", "kernels/kvbench_kernels")
    for file in sorted((ROOT / folder).rglob("__init__.py"))
}
_ENTRY = re.compile(r"^    ([a-z_]+(?:, [a-z_]+)*)  +\S", re.MULTILINE)  # name, or names, and what they are
LISTS = {
    folder: ", ".join(_ENTRY.findall(text)).split(", ") for folder, text in PACKAGES.items() if _ENTRY.search(text)
}


def contents(folder: Path) -> set[str]:
    """Return the modules and packages in a folder."""
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in folder.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", LISTS, ids=lambda folder: folder.name)
def test_a_list_of_modules_is_that_of_the_package(folder: Path) -> None:
    listed, here = LISTS[folder], contents(folder)
    assert set(listed) <= here, "no such module"
    assert len(listed) == len(set(listed))
    words = set(re.findall(r"\w+", PACKAGES[folder]))
    assert here - words == set(), "in no line of the docstring"


def test_there_are_lists() -> None:
    assert {folder.name for folder in LISTS} >= {"run", "loggers"}


def test_the_guide_lists_every_room_and_names_modules_that_exist() -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    tree = text.partition("    kvbench/\n")[2].partition("\n    kernels/")[0]
    rooms = re.findall(r"^      (\w+)[/.]", tree, re.MULTILINE)
    named = [*rooms, *re.findall(r"\b(\w+)/ has ", tree)]
    assert {name for name in named if not name.startswith("__")} >= contents(ROOT / "kvbench")
    for name in rooms:
        assert (ROOT / "kvbench" / name).is_dir() or (ROOT / "kvbench" / f"{name}.py").is_file(), name
    line = re.search(r"^      run/ .*$", tree, re.MULTILINE)
    assert line is not None
    modules = re.findall(r"(\w+)(?= →|/ )|(?<=→ )(\w+)", line[0].partition(": ")[2])
    assert {"".join(pair) for pair in modules} <= contents(ROOT / "kvbench" / "run")
