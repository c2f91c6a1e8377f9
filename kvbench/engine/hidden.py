"""The inputs of the decoder layers during a prefill, for methods that read them.

Forward pre-hooks on the decoder layers hold the input of each layer until its attention takes it. The hooks are there
during the prefill of such a method only.

Shape suffixes: T tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LayerInputs:
    """The input of the layer that runs, before its norm.

    Args:
        layers: {index of the layer: its decoder layer}.
    """

    def __init__(self, layers: Mapping[int, nn.Module]) -> None:
        self._layers = layers
        self._held: dict[int, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def begin(self) -> None:
        """Add the hooks."""
        self.close()
        for index, layer in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(partial(self._hold, index), with_kwargs=True))

    def take(self, layer: int) -> Tensor:
        """Return the [T, E] input of a layer, and forget it. Raises ValueError if the layer got none."""
        if layer not in self._held:
            raise ValueError(f"model: the input of layer {layer} is no hidden state; choose another model or method")
        return self._held.pop(layer)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._held.clear()

    def _hold(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_BTE = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden_BTE, Tensor) and hidden_BTE.dim() == 3:
            self._held[index] = hidden_BTE[0]
