"""Fixtures of the profile's tests."""

from __future__ import annotations

import pytest

from kvbench.profile import device


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is small, because its speed does not matter here."""
    monkeypatch.setattr(device, "_HOST_BYTES", 2**20)
