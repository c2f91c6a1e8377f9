"""One model at a time, for plans that follow each other."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from typing import Any

from kvbench import models


class Kept:
    """The latest tokenizer and the latest model, kept for the next plan that wants the same."""

    def __init__(self) -> None:
        self._tokenizer: tuple[str, Any] | None = None
        self._loaded: tuple[str, models.Loaded] | None = None

    def tokenizer(self, node: Mapping[str, Any]) -> Any:
        """The tokenizer of a `model` node."""
        key = json.dumps(node, sort_keys=True)
        if self._tokenizer is None or self._tokenizer[0] != key:
            self._tokenizer = (key, models.load_tokenizer(node))
        return self._tokenizer[1]

    def holds(self, node: Mapping[str, Any]) -> bool:
        """Whether the model of a `model` node is loaded."""
        return self._loaded is not None and self._loaded[0] == json.dumps(node, sort_keys=True)

    def drop_others(self, node: Mapping[str, Any]) -> None:
        """Let go of a model of another node."""
        if not self.holds(node):
            self._loaded = None
            gc.collect()

    def model(self, node: Mapping[str, Any]) -> models.Loaded:
        """The model of a `model` node; one of another node is let go first."""
        self.drop_others(node)
        if self._loaded is None:
            self._loaded = (json.dumps(node, sort_keys=True), models.load(node))
        return self._loaded[1]
