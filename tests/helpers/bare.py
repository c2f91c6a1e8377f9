"""A bare machine for the tests of the suite: a Python that finds only some of the installed packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tests.helpers import forked

THERE = ("torch", "transformers", "numpy", "pip", "setuptools")  # with all that they need
_HIDE = """
import importlib.machinery

hidden = frozenset({hidden!r})
find = importlib.machinery.PathFinder.find_spec


class Finder:  # an object, since pytest would bind a function
    def __call__(self, name, path=None, target=None):
        if path is None and name.partition(".")[0] in hidden:
            return None
        return find(name, path, target)


importlib.machinery.PathFinder.find_spec = Finder()
"""


def environment(folder: Path, carried: Iterable[str]) -> dict[str, str]:
    """Return an environment in which Python finds what a bare machine has and the packages that are carried there."""
    there = needed_by(THERE) | {plain(name) for name in carried}
    owners = importlib.metadata.packages_distributions()
    hidden = sorted(name for name in owners if not there & {plain(owner) for owner in [*owners[name], name]})
    hidden = [name for name in hidden if name not in ("kvbench", "kvbench_kernels", "hydra_plugins")]
    assert {"datasets", "matplotlib", "xdist"} <= set(hidden) and not {"torch", "yaml", "hydra"} & set(hidden)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HIDE.format(hidden=hidden))
    # pytest would find its hidden plugins by their metadata
    return os.environ | {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def forking(folder: Path, env: dict[str, str]) -> Path:
    """Let the Python that runs in such an environment start others as forks of one that has imported torch."""
    python = forked.serve(THERE[:1], env)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write(f"\nimport sys\n\nsys.executable = {str(python)!r}\n")
    return python


def needed_by(names: Iterable[str]) -> set[str]:
    """Return distributions and all that they require, extras apart."""
    result: set[str] = set()
    queue = [plain(name) for name in names]
    while queue:
        name = queue.pop()
        if name in result:
            continue
        result.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [plain(text) for text in required if "extra ==" not in text]
    return result


def plain(requirement: str) -> str:
    """Return the normalized name at the beginning of a requirement."""
    name = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""
