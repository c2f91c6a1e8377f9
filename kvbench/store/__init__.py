"""The append-only result store: one folder per run, one JSON line per sample.

    <root>/<benchmark>/<model>/<method>-b<budget>-<hash8>/
        config.yaml     the whole composed configuration, for people; secrets left out
        manifest.json   what the run is (identity and its hash), and what computes it (versions, device, hardware);
                        written after config.yaml; later only `continued_with` grows, see `kvbench.store.environment`
        samples.jsonl   one record per sample; a line is on disk before `append` returns
        scores.json     only after a re-scoring: new scores by sample id, which replace those of the records
        kept.jsonl      only with save.kept=true: which tokens each head keeps, see `kvbench.store.kept`
        status.json     {"status": running|done|partial|failed|preempted, "time", "recorded", ...}, replaced by rename

Opening the folder of an earlier run continues it. A killed process can only leave a torn last line, which the
next opening drops. Shard i of n writes samples-<i>of<n>.jsonl and status-<i>of<n>.json next to the other shards;
readers merge them. `load_numbers` reads thousands of runs as arrays, `iterate_runs` one run after another with its
records. Plans (`write_plan`) tell which runs a command makes, refusals (`kvbench.store.refusals`) why one could not
begin. Imports no torch.
"""

from __future__ import annotations

from kvbench.store.identity import identity_hash, scrub, scrub_text
from kvbench.store.kept import KeptTokens, kept_ids, read_kept
from kvbench.store.numbers import RunNumbers, load_numbers, numbers_of
from kvbench.store.plans import write_plan
from kvbench.store.progress import Progress, progress, recorded_ids
from kvbench.store.read import (
    StoredRun,
    iterate_runs,
    load_manifest,
    load_manifests,
    load_run,
    load_runs,
    run_folders,
    wanted_folders,
    write_scores,
)
from kvbench.store.run import Run, run_folder
from kvbench.store.schema import STATUSES, AnsweredRecord, Manifest, Record, RunStatus, Status, SuitePlace, held_bytes

__all__ = [
    "STATUSES",
    "AnsweredRecord",
    "KeptTokens",
    "Manifest",
    "Progress",
    "Record",
    "Run",
    "RunNumbers",
    "RunStatus",
    "Status",
    "StoredRun",
    "SuitePlace",
    "held_bytes",
    "identity_hash",
    "iterate_runs",
    "kept_ids",
    "load_manifest",
    "load_manifests",
    "load_numbers",
    "load_run",
    "load_runs",
    "numbers_of",
    "progress",
    "read_kept",
    "recorded_ids",
    "run_folder",
    "run_folders",
    "scrub",
    "scrub_text",
    "wanted_folders",
    "write_plan",
    "write_scores",
]
