"""Test set-up: imports without an installation, one thread, and no CUDA tests on a machine without a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """The configuration that the command line makes of these overrides, unchecked."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from kvbench import config
    from kvbench.paths import conf_dir

    def compose(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose("config", list(overrides))

    config.register()
    return compose


_left_out = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests marked `cuda` out of the collection when there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not _has_cuda():
        config.stash[_left_out] = len(marked)
        items[:] = [item for item in items if item not in marked]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say in one line how many tests need the GPU that is not there."""
    number = config.stash.get(_left_out, 0)
    return [f"no CUDA device: {number} tests marked cuda are not collected"] if number else []


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
