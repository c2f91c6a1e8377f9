"""The form of docstrings and a few banned words, over all Python files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.english import docstring_faults, documented, fault_of, python_files, text_faults, word_faults

ROOT = Path(__file__).resolve().parent.parent


def rooms() -> list[str]:
    """Return the paths that are checked one by one: packages and single modules, scripts, and the folders of tests."""
    paths = [*(ROOT / "kvbench").iterdir(), ROOT / "kernels", ROOT / "perf", ROOT / "scripts", ROOT / "hydra_plugins"]
    paths += [path for path in (ROOT / "tests").iterdir() if path.name != "golden"]
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.name != "__pycache__" and python_files(path))


@pytest.mark.parametrize("room", rooms())
def test_docstrings_and_words(room: str) -> None:
    faults = [f for file in python_files(ROOT / room) for f in docstring_faults(file) + word_faults(file)]
    assert not faults, "\n".join(faults)


def texts() -> list[str]:
    """Return the documents, configurations and scripts of the repository."""
    globs = ("*.md", "docs/**/*.md", "*/README.md", "tests/golden/*.md", "conf/**/*.yaml", ".github/**/*.*", ".ci/*")
    files = [file for pattern in globs for file in ROOT.glob(pattern)]
    return sorted({str(file.relative_to(ROOT)) for file in [*files, ROOT / "Makefile", ROOT / "pyproject.toml"]})


@pytest.mark.parametrize("text", texts())
def test_words_of_other_texts(text: str) -> None:
    assert not text_faults(ROOT / text), "\n".join(text_faults(ROOT / text))


def verdict(source: str) -> str | None:
    [(node, docstring)] = documented(ast.parse(source))
    return fault_of(node, docstring)


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Return the keep mask."""',
        'def f():\n    """Same as `g`, without a host sync."""',
        'class A:\n    """A paged view of the cache."""',
        'class A:\n    @property\n    def f(self):\n        """Bytes of a token."""',
        '"""Tables of stored runs."""',
        'def test_f():\n    """Other people keep their files."""',
    ],
)
def test_the_right_form_passes(source: str) -> None:
    assert verdict(source) is None


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Whether it fits."""',
        'def f():\n    """Returns the mask."""',
        'def f():\n    """[U, T] scores."""',
        'def f():\n    """Count of the rows."""',
        'class A:\n    """What a layer holds."""',
        'class A:\n    """Draws samples."""',
        'class A:\n    @property\n    def f(self):\n        """Whether it fits."""',
        '"""From overrides to jobs."""',
        'def test_f():\n    """As upstream does."""',
    ],
)
def test_the_wrong_form_is_found(source: str) -> None:
    assert verdict(source) is not None


def test_banned_words_and_names_are_found(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('made = 1  # kept beside it\ntext = f"{made} computed anew"\nfor one in "behind": pass\n')
    assert len(word_faults(file)) == 5
