"""The files of a suite's run: records as they come, the result, the log, and one archive with the rest."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import suite_targets
from suite_steps import ROOT

Record = dict[str, Any]


class Results:
    """Results in a folder. gpu_suite.jsonl has the records while the suite runs, gpu_suite.json in the end."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._records, self._json = out / "gpu_suite.jsonl", out / "gpu_suite.json"
        self._log, self._archive = out / "gpu_suite.log", out / "gpu_suite.tar.gz"
        self._profile = out / "profile"
        self._earlier: list[str] = []  # commands whose results are kept
        self._writing = threading.RLock()

    def clear(self) -> None:
        """Begin without results."""
        for file in (self._records, self._json, self._archive):
            file.unlink(missing_ok=True)
        self._log.write_text("")

    def resume(self, source: Path | None, device: str, toy: bool) -> str:
        """Keep the records of the same commit and device; returns a line that says so.

        Args:
            source: a gpu_suite.json; None for what is in the folder.
        """
        records, commands = self._known(source)
        here = {"commit": _commit(), "device": device, "toy": toy}
        others = sorted({_differs(r, here) for r in records} - {""})
        kept = [] if others else records
        self._earlier = [] if others else commands
        self._write(kept)
        steps = [r["step"] for r in kept if r.get("status") == "ok"]
        if others:
            return f"results of before are left out, they are of {others[0]}"
        return f"kept: {', '.join(steps) or 'nothing, there are no results'}"

    def has(self, step: str) -> bool:
        """Return True if a step has gone well."""
        return any(r.get("step") == step and r["status"] == "ok" for r in self.read())

    def forget(self, steps: Sequence[str]) -> None:
        """Drop what earlier runs of some steps have left, since they run again. None of them may be running."""
        benches = set(steps) - {"profile"}  # cells of several steps
        with self._writing:
            records = self.read()
            kept = [r for r in records if r.get("step") not in steps and r.get("bench") not in benches]
            if len(kept) < len(records):
                self._write(kept)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, without this machine's folders."""
        with self._writing, self._records.open("a") as file:
            file.write(self._shown(json.dumps(record)) + "\n")

    def log(self, text: str) -> None:
        with self._writing, self._log.open("a") as file:
            file.write(text)

    def read(self) -> list[Record]:
        """Return all records."""
        with self._writing:
            return _lines(self._records)

    def take_profile(self) -> None:
        """Append the cells that a profile has written."""
        cells = [cell for file in sorted(self._profile.glob("*/cells.jsonl")) for cell in _lines(file)]
        with self._writing:
            known = set(self._records.read_text().splitlines()) if self._records.exists() else set()
            for cell in cells:
                record = {"bench": "profile", **cell}
                if self._shown(json.dumps(record)) not in known:
                    self.append(record)

    def summarize(self, command: str) -> list[suite_targets.Line]:
        """Write gpu_suite.json as a whole, a record a line: what they share once, the table, and all records."""
        records = self.read()
        shared: Record = next((r["about"] for r in records if "about" in r), {})
        lines = _table(records)
        commands = [*self._earlier, self._shown(command)]
        about = shared | {"command": commands[-1], "commands": commands}
        plain = [{key: value for key, value in r.items() if key != "about"} for r in records]
        parts = [f'"about": {json.dumps(about)}', _listed("shows", [vars(line) for line in lines])]
        text = "{\n" + ",\n".join([*parts, _listed("records", plain)]) + "\n}\n"
        new = self._json.with_suffix(".json.new")
        new.write_text(text)
        new.replace(self._json)
        return lines

    def finish(self, command: str) -> list[suite_targets.Line]:
        """Write the result, and put the folders of profiles into one archive."""
        lines = self.summarize(command)
        self._records.unlink(missing_ok=True)
        if self._profile.is_dir():
            if self._archive.exists():  # of the run that this one resumes
                with tarfile.open(self._archive) as old:
                    members = [m for m in old.getmembers() if not (self._out / m.name).exists()]
                    old.extractall(self._out, members, filter="data")
            with tarfile.open(self._archive, "w:gz") as new:
                new.add(self._profile, self._profile.name)
            shutil.rmtree(self._profile)
        return lines

    @property
    def summary(self) -> Path:
        return self._json

    def _known(self, source: Path | None) -> tuple[list[Record], list[str]]:
        """Return earlier records, each with what it is about, and the commands that led to them."""
        if source is None and self._records.exists():  # the run before was cut off
            records = _lines(self._records)
            shared = next((r["about"] for r in records if "about" in r), {})
            return [{"about": shared} | r for r in records], [str(shared.get("command", ""))]
        file = source or self._json
        if not file.exists():
            return [], []
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            about = result["about"]
            records = [{**r, "about": about} for r in result["records"]]
            return records, list(about.get("commands", [about.get("command", "")]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"--resume {file}: not a gpu_suite.json ({error})") from error

    def _write(self, records: list[Record]) -> None:
        new = self._records.with_suffix(".jsonl.new")
        new.write_text("".join(json.dumps(r) + "\n" for r in records))
        new.replace(self._records)

    def _shown(self, text: str) -> str:
        """Return a text without this machine's folders, as if it was written from the checkout."""
        return text.replace(sys.executable, "python").replace(str(self._out), "OUT").replace(f"{ROOT}/", "")


def _table(records: list[Record]) -> list[suite_targets.Line]:
    """Return the table; a record that it cannot read costs the table alone, never the result."""
    try:
        return suite_targets.lines(records)
    except Exception as error:
        return [suite_targets.Line("this table", "", f"cannot be made: {error!r}", "not measured")]


def _listed(name: str, items: list[Any]) -> str:
    return f'"{name}": [\n' + ",\n".join(json.dumps(item) for item in items) + "\n]"


def _lines(file: Path) -> list[Record]:
    """Return the records of a file, without a line that was cut off."""
    result = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            result.append(json.loads(line))
        except ValueError:
            continue
    return result


def _differs(record: Record, here: Mapping[str, Any]) -> str:
    """Return how a record's commit, device or kind differs from that of here; "" if it does not."""
    about = record["about"]
    there = {"commit": about.get("commit"), "device": about.get("device", {}).get("name"), "toy": about.get("toy")}
    return ", ".join(f"{key} {there[key]}" for key in here if there[key] != here[key])


def _commit() -> str | None:
    sys.path.insert(0, str(ROOT))
    try:
        from kvbench.common.commit import commit

        return commit()
    finally:
        sys.path.remove(str(ROOT))
