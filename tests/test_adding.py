"""The examples of docs/adding.md: their files go into a copy of the repository, and their commands run there.

A code block follows a comment that says what it is: `file: PATH`, `append to PATH`, `after "LINE" in PATH`,
`before "LINE" in PATH` (LINE is how the line begins), `from PATH` (it is quoted from there), or `run`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import forked

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
_BLOCK = re.compile(r"^<!-- (.+?) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r'(after|before) "(.+)" in (\S+)')


def apply(folder: Path, what: str, body: str) -> None:
    """Do with a code block what its comment says."""
    if (place := _PLACE.fullmatch(what)) is not None:
        side, begin, name = place.groups()
        file = folder / name
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        [number] = [n for n, line in enumerate(lines) if line.startswith(begin)]
        lines.insert(number + (side == "after"), body)
        file.write_text("".join(lines), encoding="utf-8")
    elif what.startswith("append to "):
        with (folder / what.removeprefix("append to ")).open("a", encoding="utf-8") as file_end:
            file_end.write(f"\n\n{body}")
    else:
        file = folder / what.removeprefix("file: ")
        assert what.startswith("file: ") and not file.exists(), what
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body, encoding="utf-8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of all examples."""
    folder = tmp_path_factory.mktemp("adding") / "kvbench"
    folder.mkdir()
    for name in ("conf", "hydra_plugins", "kernels", "kvbench", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "docs").mkdir()
    for name in ("docs/guide.md", "docs/methods.md"):
        shutil.copy(ROOT / name, folder / name)
    for what, body in _BLOCK.findall(TEXT):
        if not what.startswith(("run", "from ")):
            apply(folder, what, body)
    return folder


def commands(section: str) -> list[str]:
    return [
        line for what, body in _BLOCK.findall(SECTIONS[section]) if what.startswith("run") for line in body.splitlines()
    ]


def test_every_code_block_is_used() -> None:
    assert set(SECTIONS) == {"A method", "A benchmark", "A model", "A figure", "A kernel"}
    assert len(_BLOCK.findall(TEXT)) == TEXT.count("\n```") // 2
    assert all(commands(section) for section in SECTIONS)


def test_quoted_code_is_that_of_the_files() -> None:
    quoted = [(what.removeprefix("from "), body) for what, body in _BLOCK.findall(TEXT) if what.startswith("from ")]
    assert len(quoted) >= 6
    for name, body in quoted:
        assert body in (ROOT / name).read_text(encoding="utf-8"), f"{name} has other lines than docs/adding.md"


def test_the_examples_import_what_exists() -> None:
    """Check the imports without running the examples, which is slow. Modules that an example writes are left out."""
    written = {what.removeprefix("file: ") for what, _ in _BLOCK.findall(TEXT)}
    checked = 0
    for module, names in re.findall(r"^from (kvbench[\w.]*) import (.+)$", TEXT, re.MULTILINE):
        if module.replace(".", "/") + ".py" in written:
            continue
        for name in names.split(", "):
            checked += 1
            there = importlib.import_module(module)
            assert hasattr(there, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"
    assert checked > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "section", [*sorted(set(SECTIONS) - {"A kernel"}), pytest.param("A kernel", marks=pytest.mark.gxx)]
)
def test_an_example_works(repository: Path, section: str) -> None:
    """The last command is started afresh, the others are forked."""
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    *forks, last = commands(section)
    for command in (*forks, last):
        bin_dir = os.pathsep.join(
            [str(Path(sys.executable if command is last else forked.python()).parent), os.environ["PATH"]]
        )
        done = subprocess.run(
            ["bash", "-c", command], cwd=repository, env={**os.environ, "PYTHONPATH": path, "PATH": bin_dir},
            capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
