"""Groups of cells measured one after the other; what is measured is on disk before the next one begins."""

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
from kvbench.profile import device, fits, kernels
from kvbench.profile.cells import Cell, Group
from kvbench.profile.measure import measure
from kvbench.profile.peaks import meter, release
from kvbench.profile.results import Results, folder_of
from kvbench.run.batching import is_out_of_memory
from kvbench.run.versions import versions

log = logging.getLogger(__name__)

VERSION = 1  # raise when what is measured changes, so that old figures are not taken for new ones


@dataclass
class Measured:
    """A group's folder, the records of the cells that were asked for, and what went wrong."""

    folder: Path
    setting: dict[str, Any]
    asked: list[dict[str, Any]]
    all: list[dict[str, Any]]
    errors: list[str] = field(default_factory=list)


def run_groups(groups: Sequence[Group]) -> list[Measured]:
    """Measure what is missing of every group.

    A cell that runs out of memory is recorded as such. One that fails otherwise is not recorded, and the others go
    on; its error is in `Measured.errors`.

    Raises:
        ValueError: a prompt that the model is too short for, weights out of reach or too large, a damaged folder.
    """
    kept = models.ModelCache()
    for group in groups:
        fits.check_lengths(group)
    return [_run(group, kept) for group in groups]


def setting_of(group: Group) -> dict[str, Any]:
    """All that the numbers of a group depend on, except what tells its cells apart."""
    cfg, spec = group.cfg, group.model
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    return {
        "model": {"name": spec.label, "weights": spec.identity(), "dtype": spec.dtype},
        "shape": asdict(models.shape(spec)),
        "device": device.facts(models.device(spec)),
        "engine": {key: cfg["engine"][key] for key in ("cache", "graph")},
        "seed": cfg["seed"],
        "profile": {**vars(group.profile), "version": VERSION},
        "versions": versions(),
    }


def _run(group: Group, kept: models.ModelCache) -> Measured:
    setting = setting_of(group)
    folder = folder_of(group.cfg["paths"]["outputs"], setting)
    with Results.open(folder, setting) as results:
        cells = kernels.resolved(group.cells, setting, models.device(group.model))
        todo = [cell for cell in cells if results.missing(cell.id, group.cfg["retry_oom"])]
        log.info("%s: %d of %d cells to measure (%s)", setting["model"]["name"], len(todo), len(cells), folder)
        errors = _measure(group, todo, setting, results, kept) if todo else []
        asked = [results.records[cell.id] for cell in cells if cell.id in results.records]
        return Measured(folder, setting, asked, list(results.records.values()), errors)


def _measure(
    group: Group, todo: Sequence[Cell], setting: Mapping[str, Any], results: Results, kept: models.ModelCache
) -> list[str]:
    cfg, place = group.cfg, models.device(group.model)
    fits.check_weights(group, setting, kept)
    bandwidth = device.copy_bandwidth(place)  # first: large weights leave no room for it
    release(place)
    loaded, gauge, errors = kept.model(group.model), meter(place), []
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
        record = {"id": cell.id, **cell.point, **about, "load": os.getloadavg()[0]}
        try:
            refused = fits.too_large(cell, group, setting)
            if refused is not None:
                results.append(record | {"status": "oom", "error": refused})
                continue
            made = measure(loaded, cell, group.profile, cfg, gauge)
        except Exception as problem:
            said = (str(problem).splitlines() or [type(problem).__name__])[0]
            if is_out_of_memory(problem):
                log.warning("%s: out of memory; recorded", cell.title)
                results.append(record | {"status": "oom", "error": said})
            else:
                log.error("%s: failed", cell.title, exc_info=None if isinstance(problem, ValueError) else problem)
                errors.append(f"{cell.title}: {said}")
            continue
        finally:
            release(place)
        made["roofline_s"] = made["step_bytes"] / bandwidth
        results.append(record | {"status": "ok", "error": None} | made)
    return errors
