"""Kill a sweep again and again: no sample may be lost, none recorded twice, and the tables come out the same.

    python perf/crash_test.py [--kills 100] [--samples 200] [--shards 1] [--seed 0] [--folder DIR]
                                    [--out FILE.json] [OVERRIDE ...]

The sweep (7 runs of a tiny random model, 200 samples each, one thread) first runs undisturbed, then in a second folder,
where every attempt is ended by SIGKILL at a random moment: a quarter of them while it starts (imports, prompts, opening
of the runs), the others after a random number of new records and a random part of a sample's time, so that they fall
into prefill, decoding and recording. The same command is issued again each time. At the end it may finish, and both
folders are compared:

    lost        samples of the undisturbed run that are missing, and samples that were on file once and later not
    doubled     ids that a run has on more than one line
    records     every field of every record, byte by byte, but clock times and what depends on the rows of a batch
    tables      all that `kvbench report` prints and writes, figures too, byte by byte, from records with equal times

--shards N: N processes share the run folders (shard=1/N ...) and all are killed. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvbench.common.commit import commit

SWEEP = [
    "model=tiny",
    "method=fullkv,streaming_llm,snapkv,ada_snapkv",  # 7 runs: the full cache once, the others
    "budget=64,100",  # under both budgets
    "benchmark.lengths=[280,300]",
    "benchmark.depths=[0,11,22,33,44,56,67,78,89,100]",
    "benchmark.max_new_tokens=16",
    "benchmark.answer=e",  # answers are random letters: so some are right
    "engine.max_rows=7",  # a batch is a sample's rows: 200 steps, so that 100 kills find something to kill
    "progress=false",
    "paths.outputs=outputs",
]
RUNS, CELLS = 7, 20
VOLATILE = ("time", "timings", "rows", "slack_bytes")  # clocks, and the batch that a row happened to be in
STARTING = 0.25  # share of the kills before the first new record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--samples", type=int, default=200, help="of each of the 7 runs; a multiple of 20")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the two outputs here; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", default=[], help="more of the sweep, e.g. engine.max_rows=12")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = crash(args.folder or Path(temporary), args.kills, args.samples, args.shards, args.seed, args.overrides)
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["passed"] else 1


def crash(
    folder: Path, kills: int, samples: int, shards: int, seed: int, overrides: list[str], python: str = sys.executable
) -> dict[str, Any]:
    """Run the sweep undisturbed and killed, compare; raises RuntimeError when an attempt fails by itself.

    Args:
        python: runs the commands in the folder that is killed; the undisturbed one always gets this process's.
    """
    begin, seeds = time.monotonic(), max(1, samples // CELLS)
    words = ["-m", *SWEEP, f"benchmark.num_seeds={seeds}", *overrides]
    calm, wild = Sweep(folder / "calm", words, shards), Sweep(folder / "wild", words, shards, python)
    first, total = calm.undisturbed()
    expected = calm.recorded()
    tally = Tally(expected.total(), first, (total - first) / (CELLS * seeds))
    rng = random.Random(seed)
    while tally.kills < kills:
        tally.attempt(wild, kills, rng)
    wild.undisturbed()
    matches = wild.recorded()
    same_records = calm.digest() == wild.digest()
    tables = calm.tables()
    same_tables = wild.tables() == tables
    lost = len(expected.keys() - matches.keys()) + tally.vanished
    doubled = sum(count - 1 for count in matches.values())
    states = [wild.status(), calm.status()]
    return {
        "what": f"{kills} SIGKILLs spread over a sweep of {CELLS * seeds} samples x {RUNS} runs, {shards} process(es)",
        "passed": not lost and not doubled and same_records and same_tables and states == [0, 0],
        "lost": lost,
        "doubled": doubled,
        "records": {"compared": len(expected), "identical": same_records, "but": list(VOLATILE)},
        "tables": {"compared": sorted(tables), "identical": same_tables},
        "status_exit_codes": states,
        "kills": {
            "total": tally.kills,
            "while_starting": tally.starting,
            "while_working": tally.kills - tally.starting,
            "that_left_a_torn_line": tally.torn,
            "that_left_a_temporary_file": tally.litter,
            "attempts_that_ended_before_their_kill": tally.ended,
            "records_on_file_at_every_tenth": sorted(tally.at)[:: max(1, len(tally.at) // 10)],
        },
        "seconds": {"undisturbed": round(total, 1), "everything": round(time.monotonic() - begin, 1)},
        "command": "python -m kvbench " + " ".join(words),
        "seed": seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


@dataclass
class Tally:
    """The sweep that is killed.

    `total` records are to come; one process takes `first` seconds until the first of them, and `pace` for a sample.
    """

    total: int
    first: float
    pace: float
    kills: int = 0
    starting: int = 0
    torn: int = 0
    litter: int = 0
    ended: int = 0
    vanished: int = 0
    at: list[int] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def attempt(self, sweep: Sweep, kills: int, rng: random.Random) -> None:
        """Issue the command, kill all its processes at a random moment, look at what is on file."""
        lines = Lines(sweep.folder)
        had = lines.count()
        left = self.total - had
        processes = sweep.start()
        early = left < 2 or rng.random() < STARTING
        if early:
            moment = time.monotonic() + rng.random() * self.first
            while lines.count() == had and time.monotonic() < moment and _alive(processes):
                time.sleep(0.002)
        else:
            working = max(1.0, (kills - self.kills) * (1 - STARTING) / len(processes))
            target = had + rng.randint(1, max(1, min(left - 1, round(2 * left / (working + 1)))))
            while lines.count() < target and _alive(processes):
                time.sleep(0.002)
            time.sleep(rng.random() * min(self.pace, 0.2))
        for process in rng.sample(processes, len(processes)):
            process.kill()
            errors = process.communicate()[1]
            if process.returncode == -signal.SIGKILL:
                self.kills += 1
                self.starting += lines.count() == had
                self.at.append(lines.count())
            elif process.returncode == 0:
                self.ended += 1
            else:
                raise RuntimeError(f"an attempt failed by itself: exit status {process.returncode}\n{errors}")
        files = list(sweep.folder.glob("outputs/runs/*/*/*/samples*.jsonl"))
        self.torn += any(not file.read_bytes().endswith(b"\n") for file in files if file.stat().st_size)
        self.litter += any(sweep.folder.glob("outputs/**/.*.tmp"))
        now = set(sweep.recorded())
        self.vanished += len(self.seen - now)
        self.seen |= now
        if sys.stderr.isatty():
            print(f"\r{self.kills}/{kills} kills, {len(now)}/{self.total} records ", end="", file=sys.stderr)


def _alive(processes: list[subprocess.Popen[str]]) -> bool:
    return any(process.poll() is None for process in processes)


class Lines:
    """Counts the whole lines in all sample files of a folder, reading what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ends, self.number = folder, Counter[Path](), 0

    def count(self) -> int:
        """Return the number of records now; cutting off a torn line removes none."""
        for file in self.folder.glob("outputs/runs/*/*/*/samples*.jsonl"):
            with file.open("rb") as opened:
                opened.seek(min(self.ends[file], file.stat().st_size))
                self.number += opened.read().count(b"\n")
                self.ends[file] = opened.tell()
        return self.number


@dataclass
class Sweep:
    """The sweep in a folder of its own, by one command or one per shard."""

    folder: Path
    words: list[str]
    shards: int
    python: str = sys.executable

    def start(self) -> list[subprocess.Popen[str]]:
        """Issue the command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = [[f"shard={i + 1}/{self.shards}"] if self.shards > 1 else [] for i in range(self.shards)]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # more only wait for each other here
        pipes["env"] = one_thread | os.environ
        command = [self.python, "-m", "kvbench", *self.words]
        return [subprocess.Popen([*command, *part], cwd=self.folder, **pipes) for part in parts]

    def undisturbed(self) -> tuple[float, float]:
        """Issue the command and let it end; seconds to the first record and to the end."""
        begin, first = time.monotonic(), 0.0
        processes, lines = self.start(), Lines(self.folder)
        had = lines.count()
        while not first and _alive(processes):
            time.sleep(0.01)
            first = time.monotonic() - begin if lines.count() > had else 0.0
        for process in processes:
            errors = process.communicate()[1]
            if process.returncode != 0:
                raise RuntimeError(f"undisturbed, and yet exit status {process.returncode}\n{errors}")
        return first, time.monotonic() - begin

    def lines(self) -> list[tuple[str, dict[str, Any]]]:
        """Run and record of every whole line, read without the store."""
        matches = []
        for file in sorted(self.folder.glob("outputs/runs/*/*/*/samples*.jsonl")):
            *whole, _ = file.read_bytes().split(b"\n")
            matches += [(file.parent.name, json.loads(line)) for line in whole]
        return matches

    def recorded(self) -> Counter[tuple[str, str]]:
        """Count how often each run has each id."""
        return Counter((run, record["id"]) for run, record in self.lines())

    def digest(self) -> str:
        """Return a hash of all records by run and id, without values that may differ between equal runs."""
        kept = [
            json.dumps([run, {key: value for key, value in record.items() if key not in VOLATILE}], sort_keys=True)
            for run, record in self.lines()
        ]
        return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()

    def tables(self) -> dict[str, str]:
        """Return what the report prints, and hashes of the files it writes, as if every record took the same time."""
        for folder in ("still", "reports"):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        shutil.copytree(self.folder / "outputs" / "runs", self.folder / "still" / "runs")
        for file in (self.folder / "still").rglob("samples*.jsonl"):
            *whole, _ = file.read_text().split("\n")
            file.write_text("".join(json.dumps(timeless(json.loads(line))) + "\n" for line in whole))
        report = [self.python, "-m", "kvbench", "report", "still/runs", "--out", "reports"]
        done = subprocess.run(report, cwd=self.folder, capture_output=True, text=True, check=True)
        built = {"printed": done.stdout}
        for file in sorted((self.folder / "reports").rglob("[!.]*.*")):  # hidden files have absolute paths
            built[str(file.relative_to(self.folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
        return built

    def status(self) -> int:
        """Return the exit status of `python -m kvbench.status`: 0 if all is done."""
        return subprocess.run([self.python, "-m", "kvbench.status"], cwd=self.folder, capture_output=True).returncode


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose clocks show the same as those of every other, in a batch of one row."""
    timings = {key: value if value is None else 1.0 for key, value in record.get("timings", {}).items()}
    same = {"time": "2026-01-01T00:00:00Z", "timings": timings, "rows": 1, "slack_bytes": 0}
    return record | {key: value for key, value in same.items() if key in record}


if __name__ == "__main__":
    sys.exit(main())
