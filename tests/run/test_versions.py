"""The hashes of our own code: they change with what the code does, and only for the methods that use it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kvbench
from kvbench.methods.select.top_k import TopK
from kvbench.run.source_hash import cpp_content, hash_sources, imported_files, python_content
from kvbench.run.versions import versions
from tests.helpers.methods import with_parts

PYTHON = '''"""A module."""
import math

LIMIT = 3
"""What LIMIT is."""

class Shape:
    """A class."""

    sides: int = 4

    def area(self, side):
        """Return the area."""
        return side ** 2  # a comment

def nothing():
    pass
'''
SAME_PYTHON = """
import math
LIMIT = (3)
class Shape:
    sides: int = 4
    def area(self,
             side):
        # another comment
        return side**2
def nothing():
    '''Do nothing.'''
"""
CPP = """// A file.
#include <cuda.h>
#define TWICE(x) \\
    ((x) + (x))  // on two lines
/* a block
   of text */
__global__ void f(float* x, int n) {
    x[0] = 1'000 + n;  // it's a comment
    print("// no comment", '"', R"(/* raw */)");
}
"""
SAME_CPP = """#include <cuda.h>
#define TWICE(x)    ((x) + (x))
__global__ void f(float* x,
                  int n)
{ x[0] = 1'000+n; print("// no comment", '"', R"(/* raw */)"); }
"""


def test_comments_docstrings_and_formatting_of_python_do_not_count() -> None:
    assert python_content(PYTHON) == python_content(SAME_PYTHON)


@pytest.mark.parametrize(
    ("old", "new"), [("= 3", "= 4"), ("side ** 2", "side ** 3"), ("sides", "corners"), ("import math", "import cmath")]
)
def test_what_python_does_counts(old: str, new: str) -> None:
    assert old in PYTHON
    assert python_content(PYTHON) != python_content(PYTHON.replace(old, new))


def test_comments_and_whitespace_of_cuda_do_not_count() -> None:
    assert cpp_content(CPP) == cpp_content(SAME_CPP)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1'000", "1'001"),
        ("// no comment", "// another text"),
        ("raw", "cooked"),
        ("((x) + (x))", "((x) + x)"),
        ("float* x", "half* x"),
        ("cuda.h>", "cuda.h> int y;"),
    ],
)
def test_what_cuda_does_counts(old: str, new: str) -> None:
    assert old in CPP
    assert cpp_content(CPP) != cpp_content(CPP.replace(old, new))


def test_every_source_of_the_kernels_can_be_read() -> None:
    from kvbench_kernels.build import csrc

    for file in csrc().rglob("*.[ch]*"):
        content = cpp_content(file.read_text(encoding="utf-8"))
        assert content and "/*" not in content and "//" not in content.replace('"//', "")


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "part.py"
    hashes = []
    for text in ("x = 1", "x = 1  # the same", "x = 22"):
        file.write_text(text)
        hashes.append(hash_sources([file]))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package outside of kvbench with a selector, a helper that it imports, and a file of another method."""
    folder = tmp_path / "own_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("STEP = 1\n")
    (folder / "other.py").write_text("class Other: pass\n")
    (folder / "chosen.py").write_text(
        "from kvbench.methods.select.top_k import TopK\nfrom . import helper\n\n"
        "class Chosen(TopK):\n    step = helper.STEP\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("own_methods")]:
        del sys.modules[name]


def test_imports_are_followed_inside_a_package(own_package: Path) -> None:
    files = imported_files("own_methods.chosen", "own_methods")
    assert set(files) == {"own_methods", "own_methods.chosen", "own_methods.helper"}
    assert files["own_methods.helper"] == own_package / "helper.py"
    both = imported_files("own_methods.chosen", "own_methods", "kvbench.methods")
    assert {"kvbench.methods.select.top_k", "kvbench.methods.base"} <= both.keys() - files.keys()


def test_a_method_from_elsewhere_is_hashed_with_its_helpers_alone(own_package: Path) -> None:
    plain = kvbench.load_method("snapkv")
    part = importlib.import_module("own_methods.chosen").Chosen(window=32)
    hashes = []
    for name, text in (("other", "x = 1"), ("helper", "STEP = 1  # the same"), ("helper", "STEP = 2")):
        (own_package / f"{name}.py").write_text(text)
        # a method of another name each time: what was hashed once in a process is not read again
        method = replace(with_parts(plain, select=part), name=f"own{len(hashes)}")
        hashes.append(versions(method)["method"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_method_is_hashed_with_its_own_parts_and_what_they_inherit() -> None:
    plain = kvbench.load_method("snapkv")

    class Changed(TopK):
        pass

    changed = with_parts(plain, select=Changed(window=32))
    assert versions(plain)["code"] == versions(changed)["code"]
    assert versions(plain)["method"] != versions(changed)["method"]
    assert versions(plain) == versions(kvbench.load_method("snapkv", window=8)), "dials are part of the identity"
