"""Measurement of groups of cells, one cell after the other. Each is on disk before the next begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from kvbench import models
from kvbench.common.commit import commit
from kvbench.models.cache import ModelCache
from kvbench.profile import device, kernels, limits
from kvbench.profile.cells import Cell, Group
from kvbench.profile.measure import measure
from kvbench.profile.peaks import meter, release
from kvbench.profile.record import CellRecord
from kvbench.profile.results import Results, folder_of
from kvbench.run.batching import is_out_of_memory
from kvbench.run.versions import versions

log = logging.getLogger(__name__)

VERSION = 1  # increase it when the measurement changes, so that old numbers are not mixed with new ones


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
    return {
        "model": {"name": spec.label, "weights": spec.identity(), "dtype": spec.dtype},
        "shape": asdict(models.shape(spec)),
        "device": device.facts(models.device(spec)),
        "engine": {key: cfg["engine"][key] for key in ("cache", "graph", "fused")},
        "seed": cfg["seed"],
        "profile": {**group.settings.per_cell(), "version": VERSION},
        "versions": versions(),
    }


def _run(group: Group, model_cache: ModelCache) -> Measured:
    setting = setting_of(group)
    folder = folder_of(group.cfg["paths"]["outputs"], setting)
    with Results.open(folder, setting) as results:
        cells = kernels.with_kernels(group.cells, setting, models.device(group.model))
        todo = [cell for cell in cells if results.needs(cell.id, group.cfg["retry_oom"])]
        log.info("%s: %d of %d cells to measure (%s)", setting["model"]["name"], len(todo), len(cells), folder)
        errors = _measure(group, todo, setting, results, model_cache) if todo else []
        asked = [results.records[cell.id] for cell in cells if cell.id in results.records]
        return Measured(folder, setting, asked, list(results.records.values()), errors)


def _measure(
    group: Group, todo: Sequence[Cell], setting: Mapping[str, Any], results: Results, model_cache: ModelCache
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
    for cell in tqdm(todo, unit="cell", desc="profile", disable=not cfg["progress"]):
        record = {"id": cell.id, **cell.point, "full_cache": cell.is_full_cache, **about, "load": os.getloadavg()[0]}
        try:
            refused = limits.too_large(cell, group, setting)
            if refused is not None:
                results.append(record | {"status": "oom", "error": refused})
                continue
            measured = measure(loaded, cell, group.settings, cfg, gauge)
        except Exception as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            if is_out_of_memory(problem):
                log.warning("%s: out of memory; recorded", cell.title)
                results.append(record | {"status": "oom", "error": reason})
            else:
                log.error("%s: failed", cell.title, exc_info=None if isinstance(problem, ValueError) else problem)
                errors.append(f"{cell.title}: {reason}")
            continue
        finally:
            release(place)
        measured["roofline_s"] = measured["step_bytes"] / bandwidth
        results.append(record | {"status": "ok", "error": None} | measured)
    return errors
