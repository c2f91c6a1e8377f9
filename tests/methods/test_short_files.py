"""The size of a method: a YAML of at most 15 lines, all lines counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvbench import config

MOST_YAML = 15


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", sorted(config.options("method")))
def test_the_yaml_of_a_method_is_short(name: str) -> None:
    assert lines(config.options("method")[name]) <= MOST_YAML
