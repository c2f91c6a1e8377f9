"""Test set-up: imports without an installation, one thread, and an account of the tests that cannot run here.

A test that needs something this machine lacks carries a mark that says so (`NEEDS`, and `golden` for data outside the
repository). It is not collected, and the end of the test run counts and names it. Nothing is skipped silently.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent

# Before torch is imported, and inherited by child processes; an explicit setting of the user stands. One thread:
# tiny models gain nothing from more, and on a busy machine two threads that wait for each other take 40 times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["COLUMNS"] = "120"  # tables are as wide as the terminal, which a worker process does not have

# Also for child processes, which may run in another folder; an installed package is the same code.
for folder in (ROOT, ROOT / "kernels"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))

from tests.helpers import outside  # noqa: E402  (needs the path above)


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Restore the variables after each test: a command that runs in this process sets some for its children."""
    before = dict(os.environ)
    yield
    for name in (os.environ.keys() | before.keys()) - {"PYTEST_CURRENT_TEST"}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """The configuration that the command line makes of these overrides, unchecked."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from kvbench import config
    from kvbench.common.paths import conf_dir

    def compose(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose("config", list(overrides))

    config.register()
    return compose


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_gxx() -> bool:
    return shutil.which("g++") is not None


def _has_nvcc() -> bool:
    from kvbench_kernels.build import compilers

    try:
        compilers.nvcc()
    except ValueError:
        return False
    return _has_gxx()


def _has_slurm() -> bool:
    """Return True if the Slurm of `.ci/slurm-up` answers. No other cluster gets jobs from a test."""
    try:
        answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "kvbench-ci" in answer.stdout


def _has_workspaces() -> bool:
    return importlib.util.find_spec("wandb_workspaces") is not None


def _has_chromium() -> bool:
    from tests.helpers.browser import CHROMIUM

    return CHROMIUM is not None


def _has_latex() -> bool:
    """Return True if there is a pdfLaTeX with the packages that our tables need."""
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    files = subprocess.run(["kpsewhich", "booktabs.sty", "xcolor.sty"], capture_output=True, text=True).stdout
    return len(files.split()) == 2


# mark: (is it here?, what is lacking and where to get it)
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "chromium": (_has_chromium, "no Chromium (Debian: chromium)"),
    "cuda": (_has_cuda, "no CUDA device"),
    "gxx": (_has_gxx, "no g++ (Debian: g++)"),
    "latex": (_has_latex, "no pdfLaTeX with booktabs and xcolor (Debian: texlive-latex-recommended)"),
    "nvcc": (_has_nvcc, "no nvcc (CUDA toolkit; CUDA_HOME)"),
    "slurm": (_has_slurm, "no Slurm for tests (.ci/slurm-up brings it up)"),
    "workspaces": (_has_workspaces, "no wandb-workspaces (pip install -c constraints.txt wandb-workspaces)"),
}
_left_out = pytest.StashKey[Counter[tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks of this file."""
    config.addinivalue_line("markers", "chromium: opens a page in headless Chromium")
    config.addinivalue_line("markers", "golden(*files): compares with data outside the repository (KVBENCH_SHARED)")
    config.addinivalue_line("markers", "gxx: compiles C++ with g++")
    config.addinivalue_line("markers", "latex: compiles a table with pdfLaTeX")
    config.addinivalue_line("markers", "nvcc: compiles CUDA with nvcc")
    config.addinivalue_line("markers", "slurm: submits jobs to the Slurm that .ci/slurm-up brings up")
    config.addinivalue_line("markers", "workspaces: builds a W&B report with wandb-workspaces")
    config.stash[_left_out] = Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests out of the collection that this machine cannot run, and remember them with the reason.

    Files with slow tests come first: a process that gets one at the end would work on while the other has nothing left.
    """
    lacks = {name: reason for name, (is_here, reason) in NEEDS.items() if _marked(items, name) and not is_here()}
    kept = []
    for item in items:
        reasons = [reason for name, reason in lacks.items() if item.get_closest_marker(name)]
        reasons += [f"no data/{name}" for mark in item.iter_markers("golden") for name in outside.lacking(mark.args)]
        if reasons:
            config.stash[_left_out][item.nodeid.partition("[")[0], ", ".join(dict.fromkeys(reasons))] += 1
        else:
            kept.append(item)
    slow = {item.path for item in kept if item.get_closest_marker("slow")}
    items[:] = sorted(kept, key=lambda item: item.path not in slow)


def _marked(items: list[pytest.Item], name: str) -> bool:
    return any(item.get_closest_marker(name) for item in items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the account of a worker process to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = list(session.config.stash[_left_out].items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the account of a worker process. All workers collect the same tests, so the last one replaces the others."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", [])
    node.config.stash[_left_out] = Counter({tuple(key): number for key, number in left_out})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Count and name the tests that were not collected, and say how to get the data that they need."""
    left_out = config.stash[_left_out]
    if not left_out:
        return
    terminalreporter.section(f"{left_out.total()} tests cannot run here")
    for (test, reason), number in sorted(left_out.items()):
        terminalreporter.write_line(f"{test}{f' ({number} cases)' if number > 1 else ''}: {reason}")
    if any("no data/" in reason for _, reason in left_out):
        terminalreporter.write_line(
            f"Outside data is looked for in {outside.DATA}; KVBENCH_SHARED=FOLDER names another folder. "
            "tests/golden/README.md says what belongs there."
        )
