"""The rows that fit into a pool of keys and values, and those that fit into the memory.

A pool has as many slots per layer as an engine's KV pool has for tokens; a slot holds the keys and values of a token in
all heads of the layer. A row takes the slots of the tokens that it keeps, and of its whole answer. Heads and layers may
keep different numbers of tokens, and a store may hold a token in fewer bytes, so slots are counted by their bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvbench import models
from kvbench.engine.row_bytes import kept_tokens, row_bytes
from kvbench.engine.variant import Request
from kvbench.methods.fitting import CacheShape
from kvbench.profile.cells import Cell, Group
from kvbench.profile.crossover import MEMORY
from kvbench.profile.settings import pool_tokens
from kvbench.prompts import Prompt
from kvbench.run import memory

_GPU_SHARE = 0.97  # of the free memory: a GPU says when its memory is full, and the cell is tried with fewer rows


def cache_shape(group: Group, setting: Mapping[str, Any]) -> CacheShape:
    """Return the sizes of the layers that are compressed."""
    return memory.cache_shape(models.Shape(**setting["shape"]))


def token_bytes(shape: CacheShape) -> int:
    """Return the bytes of a token's keys and values in all compressed layers of a full cache."""
    return shape.segments * shape.token_bytes


def in_tokens(cells: Sequence[Cell], group: Group, setting: Mapping[str, Any]) -> list[Cell]:
    """Replace sizes in bytes by sizes in tokens, and drop cells that become equal."""
    if not group.settings.pool:
        return list(cells)
    size = token_bytes(cache_shape(group, setting))
    pools = {pool: pool if pool == MEMORY else pool_tokens(pool, size) for pool in (c.pool for c in cells) if pool}
    named = [replace(cell, pool=pools[cell.pool]) for cell in cells if cell.pool is not None]
    return list({cell.id: cell for cell in named}.values())


def sized(cell: Cell, group: Group, setting: Mapping[str, Any]) -> tuple[Cell, dict[str, Any]]:
    """Return a cell with the number of its rows, 0 if not even one fits, and what its record says about the pool.

    For `MEMORY`, it depends on the memory that is free now. A cell without a pool is returned as it is.
    """
    if cell.pool is None:
        return cell, {}
    most, of_row = group.settings.max_rows, row_tokens(cell, group, setting)
    if cell.pool == MEMORY:
        rows = _in_memory(cell, group, setting, most + 1)
    else:
        assert isinstance(cell.pool, int)
        rows = cell.pool // of_row
    size = token_bytes(cache_shape(group, setting))
    return replace(cell, batch=min(rows, most)), {"row_tokens": of_row, "token_bytes": size, "capped": rows > most}


def no_room(cell: Cell, group: Group, setting: Mapping[str, Any]) -> str:
    """Return why not even one row of a cell fits into its pool."""
    needed = row_tokens(cell, group, setting)
    kept, new = needed - group.settings.new_tokens, group.settings.new_tokens
    what = f"a row needs {needed} tokens ({kept} kept, {new} of its answer)"
    return f"{what}, which the memory lacks" if cell.pool == MEMORY else f"{what}, the pool has {cell.pool}"


def row_tokens(cell: Cell, group: Group, setting: Mapping[str, Any]) -> int:
    """Return the slots of a row of a cell: of the kept tokens and of the answer."""
    shape, method, new = cache_shape(group, setting), cell.variant.method, group.settings.new_tokens
    if method.store is None and method.look is None:
        kept = cell.context if method.keeps_prompt else kept_tokens(cell.variant, shape, cell.context)
        return kept + new + (0 if method.feed is None else method.feed.chunk)
    return math.ceil(row_bytes(cell.variant, shape, cell.context, 0, new) / token_bytes(shape))


def _in_memory(cell: Cell, group: Group, setting: Mapping[str, Any], most: int) -> int:
    """Return the largest number of rows, at most `most`, for which the memory that is free now is enough.

    The estimate is closer than that of `limits.estimate`: all rows are equally long, so buffers need no spare slots.
    """
    spec, shape = group.model, models.Shape(**setting["shape"])
    place = models.device(spec)
    share = _GPU_SHARE if place.startswith("cuda") else memory.FRACTION
    free = share * memory.free_bytes(place, all_gpus=spec.device_map is not None)
    prompt = Prompt((0,) * cell.context, cell.context, frozenset(), "")
    request = Request.of(prompt, [cell.variant], group.settings.new_tokens)
    prefill = memory.prefill_bytes(shape, request, cell.context)
    kept, local = row_tokens(cell, group, setting) * shape.token_bytes, memory.local_bytes(shape, [request])
    of_row, joins = kept + local, group.settings.prompts > 1
    moved = memory.moved_bytes(shape, kept, local) if joins else 0
    rows = [n for n in range(1, most + 1) if n * (of_row + moved) + max(prefill, memory.decode_bytes(shape, n)) <= free]
    return max(rows, default=0)
