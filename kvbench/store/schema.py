"""The types of stored JSON: manifest, record, status, scores, refusal and plan.

mypy checks the code against them, and `kvbench.store.validate` checks files against them when they are read. Keys that
are not listed here are allowed and ignored, so that a newer version can add some.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

from kvbench.store.validate import Pattern, Range

SCHEMA = 1
HUGE = 2**53  # a larger integer is not exact as a float

RunStatus = Literal["running", "done", "partial", "failed", "preempted"]  # partial: ended well without all samples
STATUSES: tuple[RunStatus, ...] = ("running", "done", "partial", "failed", "preempted")
RecordStatus = Literal["ok", "oom", "failed"]  # failed: the model's output was not finite

Name = Annotated[str, Pattern(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*", "use letters, digits and _.+=- only")]  # of a folder
_SHARE = r"(?:[0-9]{1,3}\.[0-9]{1,20}|[0-9.]{1,20}e-[0-9]{1,2})"
Budget = Annotated[str, Pattern(rf"full|[0-9]{{1,15}}|{_SHARE}B?", "not a budget")]  # B: a share of bytes
ByteBudget = Annotated[str, Pattern(rf"{_SHARE}B", "not a budget in bytes")]
Digest = Annotated[str, Pattern(r"[0-9a-f]{64}", "not a sha256")]
Count = Annotated[int, Range(0, HUGE)]
Positive = Annotated[int, Range(1, HUGE)]
Number = Annotated[float, Range(-1e15, 1e15)]
Amount = Annotated[float, Range(0, HUGE)]


class Label(TypedDict):
    """The names under which a run is stored and shown."""

    benchmark: Name
    model: Name
    method: Name
    budget: Budget


class ModelIdentity(TypedDict):
    """The model in an identity."""

    name: str
    weights: object


class MethodIdentity(TypedDict):
    """The method in an identity: its name, its dials and its parts."""

    name: str


class Identity(TypedDict):
    """The identity of a run: all that its numbers depend on, see `kvbench.store.identity_hash`."""

    method: MethodIdentity
    budget: Number | ByteBudget | None
    model: ModelIdentity
    protocol: dict[str, object]
    seed: int
    dtype: str
    backend: str


class SuitePlace(TypedDict):
    """The place of a run in the table of a suite, see `kvbench.benchmarks.base.SuiteColumn`."""

    suite: Name
    name: Name
    order: Annotated[int, Range(-HUGE, HUGE)]
    category: str
    means: dict[str, Positive]
    macros: dict[str, Positive]
    samples: NotRequired[Count | None]


class Environment(TypedDict):
    """The conditions that samples are computed under. Earlier versions lack `hardware`, see `kvbench.run.hardware`."""

    versions: dict[str, str]
    device: str
    hardware: NotRequired[dict[str, str | int]]


class Continuation(Environment):
    """An environment that a run went on with, and the number of samples recorded before."""

    recorded: Count
    time: str


class Manifest(TypedDict):
    """The manifest of a run: what the run is. Written once; only `continued_with` may grow."""

    schema: int
    hash: Digest
    identity: Identity
    label: Label
    headline: str
    num_samples: Positive
    versions: dict[str, str]
    device: str
    hardware: NotRequired[dict[str, str | int]]
    continued_with: NotRequired[list[Continuation]]
    part: SuitePlace | None
    scoring: dict[str, object]
    created: str


class Timings(TypedDict, total=False):
    """Seconds, see `kvbench.engine.variant.Timings`; None where nothing was measured."""

    prefill_s: Amount | None
    compress_s: Amount | None
    ttft_s: Amount | None
    tpot_s: Amount | None


class Record(TypedDict):
    """One sample of a run, answered or not; `error` says why there is no answer.

    `context` is equal for questions on one context. Records of earlier versions lack it.
    """

    id: Annotated[str, Pattern(r".{1,512}", "not 1 to 512 characters")]
    status: RecordStatus
    error: NotRequired[str | None]
    meta: dict[str, object]
    context: NotRequired[str]
    device: NotRequired[str]
    hardware: NotRequired[str]
    time: NotRequired[str]


class AnsweredRecord(Record):
    """A record with status ok: what the model answered, its scores, and what was measured.

    `held_bytes` is `kv_bytes` with what a store or a decode policy must know of each token. Simulations lack it, and so
    do records of earlier versions whose budget is in tokens.
    """

    answers: list[str]
    prediction: str
    scores: dict[str, Number]
    scoring: NotRequired[dict[str, object]]
    span: Positive
    kept_mean: Amount
    kv_bytes: Count
    held_bytes: NotRequired[Count | None]
    kv_bytes_full: Positive
    timings: Timings


def held_bytes(record: AnsweredRecord) -> int:
    """Return the bytes that the cache held for a sample: `held_bytes`, or the keys and values where it has none."""
    held = record.get("held_bytes")
    return record["kv_bytes"] if held is None else held


class Status(TypedDict, total=False):
    """The status that a writer of a run writes; {} before the first one."""

    status: RunStatus
    time: str
    recorded: Count
    samples: Count
    limit: Count | None
    error: str | None
    slurm: str
    shards: dict[str, dict[str, object]]


class RescoredRun(TypedDict):
    """The content of scores.json: scores by sample id, in place of those in the records, and a mark of each record.

    Earlier versions lack `marks`.
    """

    scoring: dict[str, object]
    scores: dict[str, dict[str, Number]]
    marks: NotRequired[dict[str, str]]


class Refusal(TypedDict):
    """The reason why a run cannot be computed, with what was asked for.

    `final` is True if the same request is refused on every machine and in every shard, as long as the versions are the
    same. `shard` is the one that was asked for, such as "1/2".
    """

    reason: str
    final: bool
    limit: Positive | None
    retry: list[str]
    kept: bool
    shard: str | None
    versions: dict[str, str]
    time: str


class PlannedRun(TypedDict):
    """A run in a plan: its folder, relative to the outputs folder, and the largest `limit` asked for (None: all)."""

    folder: str
    limit: Positive | None


class PlanSchema(TypedDict):
    """The version of a plan's file."""

    schema: int


class PlanContent(PlanSchema):
    """The content of a plan's file. `outputs` is absolute; plans of earlier versions lack it."""

    command: str
    runs: list[PlannedRun]
    cwd: str
    outputs: NotRequired[str]
    created: str
