"""Model nodes and specs from the YAML files in conf/model/, with changes."""

from __future__ import annotations

from typing import Any

import yaml

from kvbench.common.paths import conf_dir
from kvbench.models import ModelSpec


def node(name: str, /, **changes: Any) -> dict[str, Any]:
    """Return the `model` node of conf/model/<name>.yaml with some of its settings changed."""
    return {**yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text()), **changes}


def spec(name: str, /, **changes: Any) -> ModelSpec:
    """Return the checked node of conf/model/<name>.yaml with some of its settings changed."""
    return ModelSpec.from_node(node(name, **changes))


def tiny_spec(**dims: int | float) -> ModelSpec:
    """Return the tiny model with some of its dims changed."""
    return spec("tiny", dims={**node("tiny")["dims"], **dims})
