"""A copy of conf/ that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvbench.common.paths import conf_dir


def own_conf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy conf/ to a folder, and let kvbench.config read that."""
    shutil.copytree(conf_dir(), folder)
    for module in ("compose", "groups", "messages"):  # those that import the name
        monkeypatch.setattr(f"kvbench.config.{module}.conf_dir", lambda: folder)
    return folder
