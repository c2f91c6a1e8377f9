"""Sources of models, one file per kind: `model.kind` names the file.

A file defines a frozen dataclass `Source` whose fields are the settings of that kind. Creating the object checks
them, without importing torch and without reading weights. A new kind is a new file here and a YAML in conf/model/.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Source(Protocol):
    """The origin of one model: its identity, config, tokenizer and weights.

    Every method raises ValueError, one line that names the override to change.
    """

    @property
    def answers(self) -> bool:
        """Return False for a model without a tokenizer, which can be timed and not evaluated."""
        ...

    @property
    def path(self) -> str | None:
        """Return the folder or hub id that the user gave; None for a kind without one."""
        ...

    @property
    def trust_remote_code(self) -> bool:
        """Return True if the user allowed code that comes with the model to run."""
        ...

    def own_name(self) -> str | None:
        """Return the model's name as its authors or its user gave it; None if the preset's name says it."""
        ...

    def identity(self) -> str:
        """Return what identifies weights and tokenizer, for the run hash. Imports no torch, loads no weights."""
        ...

    def config(self) -> PreTrainedConfig:
        """Return the config of transformers. Loads no weights."""
        ...

    def generation_config(self) -> GenerationConfig:
        """Return the generation config that comes with the model. Loads no weights."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer. Loads no weights."""
        ...

    def model(self, dtype: str, device: str, device_map: str | None) -> PreTrainedModel:
        """Return the model with its weights, attention set to "sdpa".

        Args:
            dtype: float32, bfloat16, float16, or auto for the model's own.
            device: where the model will be moved; a source may create it there.
            device_map: "auto" spreads the layers over all devices.
        """
        ...


def kinds() -> tuple[str, ...]:
    """Return the kinds of models: the names of the files in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def build(kind: str, settings: Mapping[str, object]) -> Source:
    """Return the checked source of a kind.

    Args:
        settings: the keys of the `model` node that not all kinds share. A key that the kind does not have must be
            null or false.

    Raises:
        ValueError: one line naming the override to change.
    """
    if kind not in kinds():
        raise ValueError(f"model.kind={kind}: choose one of {', '.join(kinds())}")
    cls = import_module(f"{__name__}.{kind}").Source
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in settings.items():
        if key not in fields and value not in (None, False):
            remedy = "; use model=local model.path=FOLDER" if key == "path" else ""
            raise ValueError(f"model.{key}={value}: model.kind={kind} has no {key}{remedy}")
    for name, field in fields.items():
        if name not in settings and field.default is dataclasses.MISSING:
            raise ValueError(f"model.{name} is not set: model.kind={kind} needs it")
    source: Source = cls(**{key: value for key, value in settings.items() if key in fields})
    return source
