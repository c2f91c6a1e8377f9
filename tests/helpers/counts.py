"""Counts of the code base: `python -m tests.helpers.counts [CHECKOUT]`.

Rooms are the modules and packages directly below `kvbench`, and `kvbench_kernels`. An arrow is a room that imports from
another one; it points upward if the other one, over any number of arrows, imports back.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.english import documented, fault_of
from tests.test_layering import imports, part_of

ROOT = Path(__file__).resolve().parents[2]


def packages(root: Path) -> dict[str, Path]:
    return {"kvbench": root / "kvbench", "kvbench_kernels": root / "kernels" / "kvbench_kernels"}


def sources(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield (module, file, room) of every Python file of the two packages."""
    for package, folder in packages(root).items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            room = package if package == "kvbench_kernels" else parts[1]
            yield ".".join(parts).removesuffix(".__init__"), file, room


def arrows(root: Path) -> dict[str, set[str]]:
    """Return {room: the rooms that it imports}."""
    table: dict[str, set[str]] = {}
    for module, file, room in sources(root):
        names = imports(file.read_text(encoding="utf-8"), module, file.name == "__init__.py")
        targets = {target for name in names if (target := part_of(name)) is not None and target != room}
        table[room] = table.get(room, set()) | targets
    return table


def upward(table: dict[str, set[str]]) -> list[str]:
    """Return the arrows that are part of a circle."""

    def reach(room: str) -> set[str]:
        seen: set[str] = set()
        waiting = [room]
        while waiting:
            new = table.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    return [f"{room} -> {target}" for room, targets in table.items() for target in targets if room in reach(target)]


def uses_of_any(tree: ast.Module) -> int:
    """Return how often the name `Any` occurs, imports aside."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def lines(*folders: Path) -> int:
    endings = {".py", ".cu", ".h", ".cpp"}
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in endings]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def method_lines(root: Path) -> dict[str, list[int]]:
    """Return the lines of every file of a part, and of every YAML of a method."""
    files = {
        "lines of a part": [
            file for file in (root / "kvbench" / "methods").glob("*/*.py") if file.name != "__init__.py"
        ],
        "lines of a method's YAML": list((root / "conf" / "method").glob("*.yaml")),
    }
    return {
        name: [len(file.read_text(encoding="utf-8").splitlines()) for file in paths] for name, paths in files.items()
    }


def counts(root: Path) -> dict[str, int]:
    """Return the counts of a checkout by name."""
    table = arrows(root)
    trees = [ast.parse(file.read_text(encoding="utf-8")) for _, file, _ in sources(root)]
    texts = [(node, text) for tree in trees for node, text in documented(tree)]
    return {
        "rooms": len(table),
        "arrows": sum(map(len, table.values())),
        "upward arrows": len(upward(table)),
        "files": len(trees),
        "lines of kvbench": lines(root / "kvbench"),
        "lines of kernels": lines(root / "kernels"),
        "lines of tests": lines(root / "tests"),
        "uses of Any": sum(map(uses_of_any, trees)),
        **{
            f"{name}, {which}": int(of(numbers))
            for name, numbers in method_lines(root).items()
            for which, of in (("files", len), ("median", statistics.median), ("maximum", max))
        },
        "docstrings": len(texts),
        "docstrings of another form": sum(fault_of(node, text) is not None for node, text in texts),
    }


def main(arguments: list[str]) -> None:
    """Print the counts of a checkout, this one by default."""
    for name, number in counts(Path(arguments[0]) if arguments else ROOT).items():
        print(f"{name:36}{number:>8}")


if __name__ == "__main__":
    main(sys.argv[1:])
