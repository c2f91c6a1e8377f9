"""The answer to "is this run complete?", for the runner, `kvbench status` and the Slurm launcher alike.

What counts is the samples on file. The status only adds which of them the writers meant to record.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kvbench.store.files import read_bytes, read_records
from kvbench.store.manifest import read_manifest
from kvbench.store.schema import Status
from kvbench.store.shards import merged_status, sample_files, statuses

_LINE = re.compile(rb'\{"id": ("(?:[^"\\]|\\.){1,512}"), .*\}')


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        recorded: samples on file.
        total: samples of the benchmark.
        settled: the first samples that the writers meant to record and finished with: all of a run that is done,
            `limit` of one that ended under a limit, else 0.
        status: the merged status of the writers.
    """

    recorded: int
    total: int
    settled: int
    status: Status

    @property
    def is_done(self) -> bool:
        """Return True if all samples are recorded and the run ended well."""
        return self.is_complete(None)

    @property
    def is_limited(self) -> bool:
        """Return True if the run ended well with all samples that its `limit` asked for."""
        return 0 < self.settled < self.total and not self.is_damaged

    @property
    def is_damaged(self) -> bool:
        """Return True if samples are gone that the writers had finished with."""
        return self.recorded < self.settled

    def is_complete(self, limit: int | None) -> bool:
        """Return True if the first `limit` samples (None: all) need no more work."""
        wanted = self.total if limit is None else min(limit, self.total)
        return self.settled >= wanted and not self.is_damaged


def progress(folder: Path, digest: str | None = None) -> Progress:
    """Return how far the run in `folder` has come, without parsing its records.

    Args:
        folder: a run folder.
        digest: the identity hash that the run must have.

    Raises:
        ValueError: the folder has no manifest, a damaged file, or a run of another identity.
    """
    written = statuses(folder)  # before the records, so that what it calls done is among them
    recorded, manifest = len(recorded_ids(folder)), read_manifest(folder, digest)
    return judge(merged_status(written, recorded, manifest["num_samples"]), recorded, manifest["num_samples"])


def judge(status: Status, recorded: int, total: int) -> Progress:
    """Return the progress of a run with this merged status and that many samples on file."""
    state, settled = status.get("status"), 0
    if state == "done":
        settled = total
    elif state == "partial":  # only the tokenizer knows which samples come first, so the writer notes how many it did
        settled = min(status.get("limit") or 0, total)
    return Progress(recorded, total, settled, status)


def recorded_ids(folder: Path) -> set[str]:
    """Return the ids on file. Lines are not parsed as long as they look as the store writes them."""
    names: set[bytes] = set()
    for file in sample_files(folder):
        *lines, _ = read_bytes(file).split(b"\n")
        matches = [_LINE.fullmatch(line) for line in lines]
        if all(matches):
            names |= {match[1] for match in matches if match is not None}
        else:
            names |= {json.dumps(record["id"]).encode() for record in read_records(file)}
    return {json.loads(name) for name in names}
