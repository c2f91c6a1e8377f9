"""A guard for forward calls: every layer attends exactly once, through our attention function."""

from __future__ import annotations

from kvbench.engine.survey import AttentionPlan


class LayerGuard:
    """The layers that still have to attend in a forward call."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._layers = frozenset([*plan.full, *plan.local])
        self._due = set(self._layers)

    def begin(self) -> None:
        """Start a forward call, and forget the layers of an earlier one that failed."""
        self._due = set(self._layers)

    def enter(self, layer: int) -> None:
        """Count a layer. Raises ValueError if it is unknown or attends again."""
        if layer not in self._due:
            raise ValueError(f"model: layer {layer} attends more than once in a forward call; choose another model")
        self._due.remove(layer)

    def finish(self) -> None:
        """End the forward call. Raises ValueError if a layer did not attend."""
        if self._due:
            raise ValueError(
                f"model: layers {sorted(self._due)} did not attend through kvbench in a forward call; choose another "
                "model"
            )
