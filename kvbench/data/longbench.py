"""LongBench on disk (arXiv 2308.14508): templates, answer lengths and rows, checked before they are used.

`Folder.check` reads a whole file, and the two hundred megabytes of all files in seconds. A sweep asks for every run, so
the result is remembered for as long as the process lives and the file keeps its size and time.
"""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.common.kinds import is_integer
from kvbench.common.suggest import did_you_mean
from kvbench.data import inventory, rows, splits
from kvbench.data.sources import LONGBENCH_CONFIG, LONGBENCH_DATA, LONGBENCH_ROWS, Source
from kvbench.data.text import read_json

COMMAND = "kvbench data longbench"
_FIELDS = {"input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"}
_MOST_NEW_TOKENS = 1_000_000
_checked: dict[tuple[str, str, int, int], tuple[int, str]] = {}  # (path, dataset, size, time): (rows, checksum)


@dataclass(frozen=True)
class Folder:
    """A folder with LongBench's files, or with some of them. `find` opens it.

    prompts, max_new_tokens: by dataset; a dataset of LongBench-E has the values of its plain name.
    files: checksums by file from the folder's inventory; empty without one.
    """

    root: Path
    prompts: Mapping[str, str]
    max_new_tokens: Mapping[str, int]
    files: Mapping[str, str]

    def splits(self, name: str) -> dict[str, Any]:
        """Return where a published code base cuts the prompts: "kvpress" or "ffy0" (see kvbench/data/splits.py)."""
        plain = {key: value for key, value in self.prompts.items() if not key.endswith("_e")}
        return splits.kvpress(plain) if name == "kvpress" else splits.ffy0(plain)

    def available(self) -> list[str]:
        """Return the datasets that have a file here, in upstream's order."""
        return [name for name in LONGBENCH_ROWS if self._file(LONGBENCH_DATA, f"data/{name}.jsonl")]

    def check(self, dataset: str) -> int:
        """Read a dataset's file, validate every row, and return their number. Raises ValueError."""
        return self._look(dataset)[0]

    def checksum(self, dataset: str) -> str:
        """Return the sha256 of a dataset's file. Raises ValueError as `check` does."""
        return self._look(dataset)[1]

    def complete(self, dataset: str) -> bool:
        """Return True if the file has all of upstream's rows. Raises ValueError as `check` does."""
        return self.check(dataset) == LONGBENCH_ROWS[dataset]

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """Return all rows in file order, with upstream's eight fields. Raises ValueError as `check` does."""
        return self._read(dataset, self._path(dataset))

    def _look(self, dataset: str) -> tuple[int, str]:
        path = self._path(dataset)
        key = _key(path, dataset)
        if key not in _checked:
            self._read(dataset, path)
        return _checked[key]

    def _read(self, dataset: str, path: Path) -> list[dict[str, Any]]:
        key = _key(path, dataset)
        entries, checksum = rows.read(path, dataset)
        # a folder without an inventory may hold any version
        if self.files.get(f"data/{dataset}.jsonl", checksum) != checksum:
            raise ValueError(f"{path}: changed since it was prepared; fetch the file again: {COMMAND} --force")
        _checked[key] = len(entries), checksum
        return entries

    def _path(self, dataset: str) -> Path:
        if dataset not in LONGBENCH_ROWS:
            raise ValueError(
                f"benchmark.datasets={dataset}: not a dataset of LongBench.{did_you_mean(dataset, LONGBENCH_ROWS)}"
            )
        path = self._file(LONGBENCH_DATA, f"data/{dataset}.jsonl")
        if path is None:
            raise ValueError(
                f"benchmark.datasets: no {dataset}.jsonl in {self.root}; run `{COMMAND}` for all files, or set "
                f"benchmark.path to a folder that has it"
            )
        return path

    def _file(self, source: Source, name: str) -> Path | None:
        return local_file(source, self.root, name)


def find(path: str | None) -> Folder:
    """Open a folder of LongBench files; None: the folder that `kvbench data longbench` prepared.

    The layout is upstream's: x.jsonl in the folder, in data/ or dev/; the configuration in config/,
    LongBench/config/ or ../config/. Raises ValueError for a folder without templates, or with damaged ones.
    """
    if path is None:
        root = inventory.home("longbench")
        if not inventory.read(root):
            what = "was not finished" if root.is_dir() else "is not there"
            raise ValueError(
                f"benchmark.path=null: LongBench {what} in {root}; run `{COMMAND}`, or set benchmark.path to a folder "
                "with upstream's files"
            )
    else:
        root = Path(path).expanduser()
        if not os.path.isdir(root):  # which is False for an impossible name, too
            raise ValueError(f"benchmark.path={path}: no such folder; null uses what `{COMMAND}` prepared")
    files = {name: entry.get("sha256", "") for name, entry in inventory.read(root).get("files", {}).items()}
    read = {}
    for name, reader in (("dataset2prompt", read_prompts), ("dataset2maxlen", read_max_new_tokens)):
        file = local_file(LONGBENCH_CONFIG, root, f"config/{name}.json")
        if file is None:
            raise ValueError(
                f"benchmark.path={path}: no config/{name}.json in {root} or next to it; copy LongBench/config of the "
                "repository THUDM/LongBench there"
            )
        read[name] = _with_e(reader(file))
        if files.get(f"config/{name}.json", "") not in ("", inventory.sha256(file)):
            raise ValueError(f"{file}: changed since it was prepared; fetch the file again: {COMMAND} --force")
    return Folder(root, read["dataset2prompt"], read["dataset2maxlen"], files)


def local_file(source: Source, folder: Path, name: str) -> Path | None:
    """Return the place of a file in a folder of one of the usual layouts, or None."""
    for pattern in source.local:
        path = folder / pattern.format(path=name, name=Path(name).name)
        if path.is_file():
            return path
    return None


def read_prompts(path: Path) -> dict[str, str]:
    """Return the templates by dataset. Raises ValueError when one is not a template with {context}."""
    prompts = _json(path)
    for name, template in prompts.items():
        if not isinstance(template, str):
            raise ValueError(f"{path}: the template of {name} is not a text; copy the file again from upstream")
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"{path}: the template of {name} has a stray brace ({error})") from None
        fields = {field for _, field, _, _ in parsed if field is not None}
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ValueError(f"{path}: the template of {name} formats a field; only names stand in its braces")
        if "context" not in fields:
            raise ValueError(f"{path}: the template of {name} has no {{context}}")
        if unknown := sorted(fields - _FIELDS):
            raise ValueError(f"{path}: the template of {name} asks for {{{unknown[0]}}}, which no row has")
    return prompts


def read_max_new_tokens(path: Path) -> dict[str, int]:
    """Return the answer lengths by dataset. Raises ValueError for anything but positive whole numbers."""
    lengths = _json(path)
    for name, value in lengths.items():
        if not is_integer(value) or not 1 <= value <= _MOST_NEW_TOKENS:
            shown = repr(value)[:40]
            raise ValueError(f"{path}: {name} must have a whole number of tokens, 1 or more, and has {shown}")
    return lengths


def _with_e(by_dataset: dict[str, Any]) -> dict[str, Any]:
    plain = {name: name.removesuffix("_e") for name in LONGBENCH_ROWS}
    return by_dataset | {name: by_dataset[key] for name, key in plain.items() if name != key and key in by_dataset}


def _key(path: Path, dataset: str) -> tuple[str, str, int, int]:
    status = path.stat()
    return str(path.resolve()), dataset, status.st_size, status.st_mtime_ns


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; fetch it again: {COMMAND} --force") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; fetch it again: {COMMAND} --force")
    return value
