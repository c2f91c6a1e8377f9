"""The hashes of our own code: they change with what the code does, and only for the methods that use it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import kvbench
from kvbench.methods.base import Score
from kvbench.methods.context import LayerContext
from kvbench.methods.select.top_k import TopK
from kvbench.run.source_hash import cpp_content, hash_sources, imported_files, python_content
from kvbench.run.versions import _SHARED, _shared_method_files, versions
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


@dataclass(frozen=True)
class Nested(Score):
    """A score that holds others, as a YAML may nest them."""

    inner: Any

    def __call__(self, ctx: LayerContext) -> Tensor:
        return ctx.k.norm(dim=-1)


@pytest.mark.parametrize("holds", [lambda part: part, lambda part: (part,), lambda part: (("x", part),)])
def test_parts_within_parts_count(holds: Callable[[object], object]) -> None:
    scores = {name: kvbench.load_method(name).named_parts["score"] for name in ("h2o", "prefixkv", "streaming_llm")}
    evicting = kvbench.load_method("h2o")
    hashes = {versions(with_parts(evicting, score=Nested(holds(part))))["method"] for part in scores.values()}
    assert len(hashes) == 3


CHANGES = """
import sys
from pathlib import Path
import kvbench
from kvbench.run import versions as v

methods = {name: kvbench.load_method(name) for name in ("snapkv", "h2o", "ada_snapkv+kivi", "kivi")}
folder = Path(kvbench.__file__).parent / "methods"

def hashes():
    for cached in (v._shared_versions, v._shared_method_files, v._parts_hash):
        cached.cache_clear()
    return {name: (v.versions(m)["code"], v.versions(m)["method"]) for name, m in methods.items()}

def append(file, text):
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + text)
    now = hashes()
    changed = sorted(name for name in methods if now[name] != before[name])
    before.update(now)
    print(file, changed)

before = hashes()
append("scores/added.py", "X = 1\\n")
append("added/part.py", "X = 1\\n")
append("scores/column_sums.py", "# a comment\\n")
append("scores/column_sums.py", "X = 1\\n")
append("store/kivi.py", "X = 1\\n")
append("method.py", "# a comment\\n")
append("method.py", "X = 1\\n")
"""


def test_only_the_methods_that_use_a_file_change_with_it(tmp_path: Path) -> None:
    """A new method, or a comment, must not make the recorded runs of the others look outdated."""
    root = Path(kvbench.__file__).parents[1]
    for name in ("kvbench", "conf", "hydra_plugins"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(tmp_path), str(root / "kernels")])
    command = [sys.executable, "-c", CHANGES]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    everything = ["ada_snapkv+kivi", "h2o", "kivi", "snapkv"]
    assert done.stdout.splitlines() == [
        "scores/added.py []",
        "added/part.py []",
        "scores/column_sums.py []",
        "scores/column_sums.py ['h2o']",
        "store/kivi.py ['ada_snapkv+kivi', 'kivi']",
        "method.py []",
        f"method.py {everything}",
    ]


def test_what_the_shared_code_imports_of_the_methods_is_shared() -> None:
    folder = Path(kvbench.__file__).parent
    shared = set(_shared_method_files())
    for room in _SHARED:
        for file in (folder / room).rglob("*.py"):
            module = ".".join(["kvbench", *file.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
            files = imported_files(module, "kvbench.methods")
            files.pop(module)
            assert set(files.values()) <= shared | {folder / "methods" / "__init__.py"}, module


def test_a_method_is_hashed_with_its_own_parts_and_what_they_inherit() -> None:
    plain = kvbench.load_method("snapkv")

    class Changed(TopK):
        pass

    changed = with_parts(plain, select=Changed(window=32))
    assert versions(plain)["code"] == versions(changed)["code"]
    assert versions(plain)["method"] != versions(changed)["method"]
    assert versions(plain) == versions(kvbench.load_method("snapkv", window=8)), "dials are part of the identity"
