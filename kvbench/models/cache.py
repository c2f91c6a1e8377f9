"""A cache of one model, for groups of runs that follow each other."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

from kvbench import models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelCache:
    """The latest tokenizer and the latest model, kept for the next group of runs that needs the same."""

    def __init__(self) -> None:
        weakref.finalize(self, gc.unfreeze)  # what `model` froze must not outlive the cache
        self._tokenizer: tuple[models.ModelSpec, PreTrainedTokenizerBase] | None = None
        self._loaded: tuple[models.ModelSpec, models.Loaded] | None = None

    def tokenizer(self, spec: models.ModelSpec) -> PreTrainedTokenizerBase:
        """Return the tokenizer of `spec`, loaded if it is not the latest."""
        if self._tokenizer is None or self._tokenizer[0] != spec:
            self._tokenizer = (spec, models.load_tokenizer(spec))
        return self._tokenizer[1]

    def holds(self, spec: models.ModelSpec) -> bool:
        """Return True if the model of `spec` is loaded."""
        return self._loaded is not None and self._loaded[0] == spec

    def drop_others(self, spec: models.ModelSpec) -> None:
        """Free the memory of a model of another spec."""
        if not self.holds(spec):
            self._loaded = None
            gc.unfreeze()
            gc.collect()

    def model(self, spec: models.ModelSpec) -> models.Loaded:
        """Return the model of `spec`, loaded if it is not the latest. A model of another spec is freed first."""
        self.drop_others(spec)
        if self._loaded is None:
            self._loaded = (spec, models.load(spec))
            # What lives until the model is dropped is not searched for garbage again. A search takes 0.2 s, and almost
            # every job group of a large sweep has one.
            gc.collect()
            gc.freeze()
        return self._loaded[1]
