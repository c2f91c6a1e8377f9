"""A `model` node of the configuration, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.models import settings
from kvbench.models.sources import Source, build, kinds

DTYPES = ("auto", "float32", "bfloat16", "float16")
CHAT_TEMPLATE = ("auto", "never", "always")
_SHARED = ("name", "kind", "dtype", "device", "device_map", "max_length", "chat_template", "chat_kwargs", "hints")


@dataclass(frozen=True)
class ModelSpec:
    """A model as the configuration asks for it. Two equal specs are the same model, loaded in the same way.

    Attributes:
        name: the preset, conf/model/<name>.yaml.
        dtype: of weights and cache: float32, bfloat16, float16, or auto for the model's own.
        device: auto, cpu, cuda or cuda:N.
        source: the origin of config, tokenizer and weights; holds the settings of the model's kind.
        device_map: "auto" spreads the layers over all devices.
        max_length: tokens of the longest prompt with its answer; None for the model's own limit.
        chat_template: auto, never, or always (an error when there is none).
        chat_kwargs: variables for the chat template.
        hints: dials that suit this model's tokenizer.
    """

    name: str
    dtype: str
    device: str
    source: Source
    device_map: str | None
    max_length: int | None
    chat_template: str
    chat_kwargs: dict[str, object]
    hints: dict[str, object]

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a `model` node. Imports no torch, fetches nothing.

        Raises:
            ValueError: one line naming the override to change.
        """
        device, device_map = str(node["device"]), node.get("device_map")
        limit = node.get("max_length")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
            raise ValueError(f"model.device={device}: choose auto, cpu, cuda or cuda:N")
        if device_map not in (None, "auto"):
            raise ValueError(f"model.device_map={device_map}: choose null or auto")
        if device_map == "auto" and device != "auto":
            raise ValueError(f"model.device={device}: device_map=auto places the layers; leave device at auto")
        return cls(
            name=str(node["name"]),
            dtype=settings.choice("model.dtype", node["dtype"], DTYPES),
            device=device,
            source=build(str(node["kind"]), {key: node[key] for key in node if key not in _SHARED}),
            device_map=device_map,
            max_length=None if limit is None else settings.integer("model.max_length", limit),
            chat_template=settings.choice("model.chat_template", node.get("chat_template", "auto"), CHAT_TEMPLATE),
            chat_kwargs=settings.mapping("model.chat_kwargs", node.get("chat_kwargs")),
            hints=settings.mapping("model.hints", node.get("hints")),
        )

    @property
    def label(self) -> str:
        """Return the name in tables and folders: the preset's; of a preset for any model, the model's own.

        Two checkpoints that both run under model=local are told apart by it.
        """
        name = self.source.own_name() if self.name in kinds() else None
        return re.sub(r"[^\w.+-]+", "_", name).strip("._")[:100] if name else self.name

    @property
    def setting(self) -> str:
        """Return the override that chose the model; messages about it begin with this."""
        return f"model={self.name}" if self.source.path is None else f"model.path={self.source.path}"

    def check_answers(self) -> None:
        """Raise ValueError for a model whose answers mean nothing: it has no tokenizer."""
        if not self.source.answers:
            raise ValueError(
                f"model={self.name}: random weights answer nothing; measure time and memory with kvbench profile"
            )

    def identity(self) -> str:
        """Return what identifies weights and tokenizer, for the run hash. Loads no model and imports no torch."""
        return self.source.identity()
