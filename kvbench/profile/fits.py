"""What cannot work is said before it is tried: prompts beyond the model's length, weights beyond the memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvbench import models
from kvbench.engine.variant import Request
from kvbench.profile.cells import Cell, Group
from kvbench.prompts import Prompt
from kvbench.run import memory


def check_lengths(group: Group) -> None:
    """Raises ValueError when a cell's prompt and answer are longer than the model allows."""
    limit = models.max_length(group.model)
    longest = max(cell.context for cell in group.cells)
    if limit is not None and longest + group.profile.new_tokens > limit:
        raise ValueError(
            f"profile.context={longest}: with {group.profile.new_tokens} new tokens more than the {limit} of "
            f"model={group.model.name}; model.max_length=TOKENS lifts this limit"
        )


def check_weights(group: Group, setting: Mapping[str, Any], kept: models.ModelCache) -> None:
    """Raises ValueError when the weights do not fit: loading them would take the process down."""
    spec = group.model
    kept.drop_others(spec)
    free = memory.free_bytes(models.device(spec), all_gpus=spec.device_map is not None)
    need = 0 if kept.holds(spec) else setting["shape"]["weight_bytes"]
    if need > free:
        hint = "; model.layers=N takes a part of it" if not spec.source.answers else ""
        raise ValueError(
            f"model={spec.name}: its weights take {need / memory.GIB:.1f} GiB, of {free / memory.GIB:.1f} GiB "
            f"free on {models.device(spec)}{hint}"
        )


def too_large(cell: Cell, group: Group, setting: Mapping[str, Any]) -> str | None:
    """Why a cell is not even tried; None if it is.

    A GPU says by itself that it is full. The host's memory is estimated instead: the system kills who exceeds it.
    """
    if setting["device"]["type"] != "cpu":
        return None
    prompt = Prompt((0,) * cell.context, cell.context, frozenset(), "")
    requests = [Request(prompt, [cell.variant], group.profile.new_tokens)] * cell.batch
    free, masked = memory.free_bytes("cpu"), group.cfg["engine"]["cache"] == "masked"
    limits = memory.Limits(cell.batch, cell.batch, free, models.Shape(**setting["shape"]), "aware", masked)
    need = limits.total(requests)
    if need <= free:
        return None
    return f"not tried: about {need / memory.GIB:.1f} GiB beside the weights, of {free / memory.GIB:.1f} GiB free"
