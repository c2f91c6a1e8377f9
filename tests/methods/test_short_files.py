"""The size of a method: a YAML of at most 15 lines, and Python files of at most 60; all lines count."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvbench.methods
from kvbench import config

MOST_YAML, MOST_PYTHON = 15, 60
FOLDER = Path(kvbench.methods.__file__).parent
LONGER: dict[str, str] = {}  # file of a part → why it may be longer; for machinery that several methods share


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def parts() -> list[str]:
    """Return the files that hold parts: those in a folder below kvbench/methods/."""
    return sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("name", sorted(config.options("method")))
def test_the_yaml_of_a_method_is_short(name: str) -> None:
    assert lines(config.options("method")[name]) <= MOST_YAML


@pytest.mark.parametrize("part", parts())
def test_the_file_of_a_part_is_short(part: str) -> None:
    if part in LONGER:
        assert lines(FOLDER / part) > MOST_PYTHON, f"{part} needs no exception"
    else:
        assert lines(FOLDER / part) <= MOST_PYTHON


def test_exceptions_are_files_with_a_reason() -> None:
    assert set(LONGER) <= set(parts()) and all(LONGER.values())
