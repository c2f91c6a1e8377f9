"""Dependencies: what is imported is declared in pyproject.toml, and what is declared is imported."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kvbench", "kernels/kvbench_kernels", "hydra_plugins")
OURS = {"kvbench", "kvbench_kernels", "hydra_plugins", "tests", "perf"}
BY_TRANSFORMERS = {"accelerate", "gguf"}  # imported there when we ask for what needs them
BY_TOOLS = {
    "codespell", "ipykernel", "mypy", "nbstripout", "pre-commit", "pre-commit-hooks", "pytest-timeout", "pytest-xdist",
    "ruff", "types-pyyaml", "types-tabulate", "types-tqdm",
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name: str) -> str:
    """Return a package's name as the index compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower()


def extra(name: str) -> set[str]:
    return {normal(line) for line in PROJECT["optional-dependencies"][name]} - {"kvbench"}


def imported(*folders: str) -> dict[str, bool]:
    """Return {package: True if a module imports it at its top level} for the Python files below `folders`."""
    owners = importlib.metadata.packages_distributions()
    packages: dict[str, bool] = {}
    for file in sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                for owner in {normal(owner) for owner in owners.get(name, [name])}:
                    packages[owner] = packages.get(owner, False) or node in tree.body
    return packages


DECLARED = {normal(line) for line in PROJECT["dependencies"]}
IMPORTED = imported(*PACKAGES)


def test_what_is_imported_is_declared() -> None:
    optional = set(IMPORTED) - DECLARED
    assert optional <= {"submitit", "trackio", "wandb", "wandb-workspaces"}, "not in pyproject.toml"
    assert not any(IMPORTED[name] for name in optional), "an optional package is imported inside functions alone"


def test_what_is_declared_is_imported() -> None:
    assert DECLARED - set(IMPORTED) == BY_TRANSFORMERS


def test_heavy_packages_for_one_option_are_imported_when_it_is_used() -> None:
    assert not any(IMPORTED[name] for name in ("datasets", "huggingface-hub", "jieba", "nltk", "pillow", "rouge-score"))


def test_the_extras_for_development_hold_what_the_tests_need() -> None:
    installed = extra("dev") | extra("parity") | extra("slurm") | extra("trackio") | extra("wandb")
    assert set(imported("tests")) - DECLARED - installed == set()
    assert installed - set(imported("tests")) - set(IMPORTED) == BY_TOOLS


def test_every_tested_version_is_of_something_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line) for line in lines if line and not line.startswith("#")}
    extras = {name for key in PROJECT["optional-dependencies"] for name in extra(key)}
    assert not DECLARED - pinned
    assert not extras - pinned - {"flash-attn"}  # compiled by hand for each GPU
    assert pinned - DECLARED - extras == {"cloudpickle"}  # of submitit
