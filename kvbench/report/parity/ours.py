"""Our own runs, as far as they are compared with published rows: means by dataset, and the facts of their settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvbench.report.suite_groups import row_key, suite_groups
from kvbench.store import Manifest, Record, Status, StoredRun, iterate_runs

ABSENT = "nothing"  # what a run has at a path that it lacks
_HUB = re.compile(r"hub:([^@]+)@.*")
_LOCAL = "local:"


@dataclass(frozen=True)
class Score:
    """The score of a run.

    Attributes:
        points: 100 × the mean of the headline over the samples with an answer; None without one.
        answered, total: samples with an answer, samples of the benchmark as published.
    """

    points: float | None
    answered: int
    total: int


@dataclass(frozen=True)
class ShortRun:
    """A run without its records, which are summed up in `score`."""

    manifest: Manifest
    score: Score
    status: Status = field(default_factory=lambda: Status())
    samples: Sequence[Record] = ()


@dataclass(frozen=True)
class Variant:
    """The runs of one model, method and budget in one suite, or the one run of a benchmark that stands alone."""

    group: str
    method: str
    budget: str
    runs: tuple[ShortRun, ...]

    @property
    def scores(self) -> dict[str, Score]:
        """The scores by dataset, or by benchmark where there is no suite."""
        return {_column(run.manifest): run.score for run in self.runs}

    @property
    def is_local(self) -> bool:
        """Return True if the weights are those of a folder, which does not say where they are from."""
        return all(str(run.manifest["identity"]["model"]["weights"]).startswith(_LOCAL) for run in self.runs)

    def facts(self, path: str) -> list[object]:
        """Return the different values that the runs have at a path such as "protocol.question" or "model"."""
        values: list[object] = []
        for run in self.runs:
            value = fact_of(run.manifest, path)
            if value not in values:
                values.append(value)
        return values


def read_variants(root: Path, wanted: Iterable[tuple[str, str]]) -> list[Variant]:
    """Return the variants at or below `root` of the wanted pairs of group and method. Reads one run at a time."""
    pairs = set(wanted)
    runs = iterate_runs(
        root, wanted=lambda manifest: (_group(manifest), manifest["label"]["method"]) in pairs, bulky=False
    )
    short = [_shorten(run) for run in runs]
    variants: list[Variant] = []
    for table in suite_groups([run for run in short if run.manifest["part"] is not None]):
        rows: dict[str, list[ShortRun]] = {}
        for run in table:
            rows.setdefault(row_key(run), []).append(run)
        variants += [_variant(members) for members in rows.values()]
    return variants + [_variant([run]) for run in short if run.manifest["part"] is None]


def _variant(runs: Sequence[ShortRun]) -> Variant:
    label = runs[0].manifest["label"]
    return Variant(_group(runs[0].manifest), label["method"], label["budget"], tuple(runs))


def _shorten(run: StoredRun) -> ShortRun:
    headline, part = run.manifest["headline"], run.manifest["part"]
    values = [record["scores"][headline] for record in run.answered if headline in record["scores"]]
    published = part.get("samples") if part else None
    total = max(run.manifest["num_samples"], published or 0)
    points = 100 * sum(values) / len(values) if values else None
    return ShortRun(run.manifest, Score(points, len(values), total))


def _group(manifest: Manifest) -> str:
    return manifest["part"]["suite"] if manifest["part"] else manifest["label"]["benchmark"]


def _column(manifest: Manifest) -> str:
    return manifest["part"]["name"] if manifest["part"] else manifest["label"]["benchmark"]


def fact_of(manifest: Manifest, path: str) -> object:
    """Return the value of a run at a path; `ABSENT` if it has none."""
    identity, label = manifest["identity"], manifest["label"]
    if path == "model":
        match = _HUB.fullmatch(str(identity["model"]["weights"]))
        return match[1] if match else label["model"]
    if path == "kept per":
        return "KV head"
    first, *rest = path.split(".")
    value: object = {**identity, "scoring": manifest["scoring"]}.get(first, ABSENT)
    for key in rest:
        value = value.get(key, ABSENT) if isinstance(value, Mapping) else ABSENT
    return value
