"""Measurement of groups of cells, one cell after the other. Each is on disk before the next begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from kvbench import models
from kvbench.common import clock
from kvbench.common.commit import commit
from kvbench.models import Loaded
from kvbench.models.cache import ModelCache
from kvbench.profile import device, kernels, limits, pools
from kvbench.profile.cells import Cell, Group
from kvbench.profile.crossover import MEMORY
from kvbench.profile.measure import measure
from kvbench.profile.peaks import Meter, meter, release
from kvbench.profile.record import CellRecord
from kvbench.profile.results import folder_of, needs, open_results
from kvbench.run.asset import RecordFolder
from kvbench.run.batching import is_out_of_memory
from kvbench.run.versions import versions

log = logging.getLogger(__name__)

VERSION = 1  # increase it when the measurement changes, so that old numbers are not mixed with new ones
_FEWER = 3  # times that the rows of a full cache as large as the memory allows are reduced, by an eighth each time


@dataclass
class Measured:
    """Results of a group.

    Attributes:
        folder: where they are.
        setting: everything the numbers depend on, except what tells cells apart.
        asked: records of the cells of this command.
        all: records of all cells in the folder.
        errors: one line per cell that failed.
    """

    folder: Path
    setting: dict[str, Any]
    asked: list[CellRecord]
    all: list[CellRecord]
    errors: list[str] = field(default_factory=list)


def run_groups(groups: Sequence[Group]) -> list[Measured]:
    """Measure the cells of every group that have no record yet.

    A cell that runs out of memory is recorded as such. A cell that fails otherwise is not recorded, and the others go
    on; its error is in `Measured.errors`.

    Raises:
        ValueError: a prompt is longer than the model allows, the weights are missing or too large, or a folder is
            damaged.
    """
    model_cache = ModelCache()
    for group in groups:
        limits.check_lengths(group)
    return [_run(group, model_cache) for group in groups]


def setting_of(group: Group) -> dict[str, Any]:
    """Return everything that the numbers of a group depend on, except what tells its cells apart."""
    cfg, spec = group.cfg, group.model
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    shape = asdict(models.shape(spec))
    if not shape["local_layers"]:
        del shape["local_layers"], shape["window"]
    return {
        "model": {"name": spec.label, "weights": spec.identity(), "dtype": spec.dtype},
        "shape": shape,
        "device": device.facts(models.device(spec)),
        "engine": {key: cfg["engine"][key] for key in ("cache", "graph", "fused")},
        "seed": cfg["seed"],
        "profile": {**group.settings.per_cell(), "version": VERSION},
        "versions": versions(),
    }


def _run(group: Group, model_cache: ModelCache) -> Measured:
    setting = setting_of(group)
    folder = folder_of(group.cfg["paths"]["outputs"], setting)
    with open_results(folder, setting) as results:
        in_tokens = pools.in_tokens(group.cells, group, setting)
        cells = kernels.with_kernels(in_tokens, setting, models.device(group.model))
        todo = [cell for cell in cells if needs(results, cell.id, group.cfg["retry_oom"])]
        log.info("%s: %d of %d cells to measure (%s)", setting["model"]["name"], len(todo), len(cells), folder)
        errors = _measure(group, todo, setting, results, model_cache) if todo else []
        asked = [results.records[cell.id] for cell in cells if cell.id in results.records]
        return Measured(folder, setting, asked, list(results.records.values()), errors)


def _measure(
    group: Group,
    todo: Sequence[Cell],
    setting: Mapping[str, Any],
    results: RecordFolder[CellRecord],
    model_cache: ModelCache,
) -> list[str]:
    cfg, place = group.cfg, models.device(group.model)
    limits.check_weights(group, setting, model_cache)
    bandwidth = device.copy_bandwidth(place)  # before large weights leave no room for it
    release(place)
    loaded, gauge, errors = model_cache.model(group.model), meter(place), []
    about = {
        "model": setting["model"],
        "device": setting["device"],
        "versions": setting["versions"],
        "commit": commit(),
        "memory": gauge.kind,
        "bandwidth": bandwidth,
        **{key: value for key, value in setting["profile"].items() if key != "version"},
    }
    log.info("%s copies %.1f GB/s, read and written", setting["device"]["name"], bandwidth / 1e9)
    warm: set[tuple[object, ...]] = set()
    for cell in tqdm(todo, unit="cell", desc="profile", disable=not cfg["progress"]):
        record = {"id": cell.id, **cell.point, "full_cache": cell.is_full_cache, **about, "load": os.getloadavg()[0]}
        try:
            sized, of_pool = pools.sized(cell, group, setting)
            outcome = _outcome(loaded, sized, group, setting, gauge, warm)
            for _ in range(_FEWER if cell.pool == MEMORY else 0):  # the memory allows fewer rows than its estimate
                if outcome["status"] != "oom" or sized.batch < 2:
                    break
                release(place)
                sized = replace(sized, batch=sized.batch - max(1, sized.batch // 8))
                outcome = _outcome(loaded, sized, group, setting, gauge, warm)
        except Exception as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            log.error("%s: failed", cell.title, exc_info=None if isinstance(problem, ValueError) else problem)
            errors.append(f"{cell.title}: {reason}")
            continue
        finally:
            release(place)
        if outcome["status"] == "ok":
            outcome["roofline_s"] = outcome["step_bytes"] / bandwidth
        of_cell = record | of_pool | {"batch": sized.batch} | outcome | {"time": clock.now()}
        results.append(cast(CellRecord, of_cell))
    return errors


def _outcome(
    loaded: Loaded, cell: Cell, group: Group, setting: Mapping[str, Any], gauge: Meter, warm: set[tuple[object, ...]]
) -> dict[str, Any]:
    """Measure a cell. Return its status, why it was not measured, and the numbers.

    Args:
        warm: the variants, context lengths and kernels that have run with some number of rows. Cells of a pool differ
            in this number alone, so they need no further warm-up.
    """
    if cell.batch == 0:
        return {"status": "no_room", "error": pools.no_room(cell, group, setting)}
    refused = limits.too_large(cell, group, setting)
    if refused is not None:
        return {"status": "oom", "error": refused}
    settings, key = group.settings, (cell.variant, cell.context, cell.kernel)
    if cell.pool is not None and key in warm:
        settings = replace(settings, warmup=0)
    try:
        measured = measure(loaded, cell, settings, group.cfg, gauge)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        log.warning("%s: out of memory", cell.title)
        return {"status": "oom", "error": (str(problem).splitlines() or [type(problem).__name__])[0]}
    warm.add(key)
    return {"status": "ok", "error": None} | measured
