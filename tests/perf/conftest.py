"""The modules of perf/gpu, for the tests of the GPU suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.helpers.gpu_suite import GPU, Load


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a module of perf/gpu; forgotten afterwards, for their names are common ones."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(GPU))

    def loaded(name: str) -> ModuleType:
        return __import__(name)

    yield loaded
    for name in set(sys.modules) - before:
        if str(GPU) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
