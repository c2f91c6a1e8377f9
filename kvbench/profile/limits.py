"""The checks before a measurement: prompts longer than the model allows, weights or caches larger than the memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kvbench import models
from kvbench.methods.allowance import allowed, check_reach
from kvbench.methods.budgets import ByteShare
from kvbench.models.cache import ModelCache
from kvbench.profile.cells import Cell, Group
from kvbench.profile.settings import ProfileSettings
from kvbench.prompts import Prompt
from kvbench.run import memory

log = logging.getLogger(__name__)


def check_lengths(group: Group) -> None:
    """Check that the model allows each cell's prompt and answer, and its budget in bytes. Raises ValueError."""
    limit = models.max_length(group.model)
    longest = max(cell.context for cell in group.cells)
    if limit is not None and longest + group.settings.new_tokens > limit:
        raise ValueError(
            f"profile.context={longest}: with {group.settings.new_tokens} new tokens, more than the {limit} of "
            f"model={group.model.name}; model.max_length=TOKENS raises this limit"
        )
    _check_bytes(group)


def _check_bytes(group: Group) -> None:
    """Raise ValueError for a budget in bytes that a method cannot meet at a context length."""
    cells = [cell for cell in group.cells if isinstance(cell.variant.budget, ByteShare)]
    if not cells:
        return
    shape = memory.cache_shape(models.shape(group.model))
    for cell in cells:
        check_reach(cell.variant.method, cell.variant.budget, cell.context, shape)
        allowed(cell.variant.method, cell.variant.budget, cell.context, shape)


def check_weights(group: Group, setting: Mapping[str, Any], model_cache: ModelCache) -> None:
    """Check that the weights fit into the memory; otherwise the system would kill the process. Raises ValueError."""
    spec = group.model
    model_cache.drop_others(spec)
    free = memory.free_bytes(models.device(spec), all_gpus=spec.device_map is not None)
    need = 0 if model_cache.holds(spec) else setting["shape"]["weight_bytes"]
    if need == 0 and not model_cache.holds(spec):
        log.info("model=%s: its weights are quantised and not here yet, so whether they fit is not checked", spec.name)
    if need > free:
        hint = "; model.layers=N loads only N of its layers" if not spec.source.answers else ""
        raise ValueError(
            f"model={spec.name}: its weights take {need / memory.GIB:.1f} GiB, of {free / memory.GIB:.1f} GiB "
            f"free on {models.device(spec)}{hint}"
        )


def too_large(cell: Cell, group: Group, setting: Mapping[str, Any]) -> str | None:
    """Return why a cell is not tried; None if it is tried.

    A GPU reports that its memory is full. The host's memory is estimated instead, because the system kills a process
    that exceeds it.
    """
    if setting["device"]["type"] != "cpu":
        return None
    free, need = memory.free_bytes("cpu"), estimate(cell, group, setting)
    if need <= free:
        return None
    return (
        f"not tried: about {need / memory.GIB:.1f} GiB in addition to the weights, of {free / memory.GIB:.1f} GiB free"
    )


def estimate(cell: Cell, group: Group, setting: Mapping[str, Any]) -> int:
    """Return about how many bytes a cell needs in addition to the weights: an upper bound."""
    prompt = Prompt((0,) * cell.context, cell.context, frozenset(), "")
    prompts = [prompt] * prompts_of(cell, group.settings)
    masked = group.cfg["engine"]["cache"] == "masked"
    bounds = memory.Limits(cell.batch, cell.batch, 0, models.Shape(**setting["shape"]), "aware", masked)
    return bounds.total(cell.requests(prompts, group.settings.new_tokens))


def prompts_of(cell: Cell, settings: ProfileSettings) -> int:
    """Return how many different prompts the rows of a cell have."""
    return cell.batch if cell.pool is None else min(cell.batch, settings.prompts)
