"""LongBench on disk (arXiv 2308.14508): templates, answer lengths and rows, checked before anybody uses them.

`Folder.check` reads a whole file, the two hundred megabytes of all of them in seconds. A sweep asks for every run, so
what was checked is remembered for as long as the process lives and the file keeps its size and time.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kvbench.common.files import write_atomic
from kvbench.data import manifest, rows, splits
from kvbench.data.sources import LONGBENCH_CONFIG, LONGBENCH_DATA, LONGBENCH_ROWS, Source

COMMAND = "python -m kvbench.data longbench"
_PRESETS = {"kvpress": "kvpress", "ffy0": "ffy0-agnostic"}  # split: the protocol that needs it
_FIELDS = {"input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"}
_checked: dict[tuple[str, str, int, int], tuple[int, str]] = {}  # (path, dataset, size, time): (rows, checksum)


@dataclass(frozen=True)
class Folder:
    """A folder with LongBench's files, or with some of them. Made by `find`.

    prompts, max_new_tokens: by dataset; the datasets of LongBench-E stand there too, with what their plain names have.
    files: checksums by file from the folder's manifest; empty without one.
    """

    root: Path
    prompts: Mapping[str, str]
    max_new_tokens: Mapping[str, int]
    files: Mapping[str, str]

    def splits(self, name: str) -> dict[str, Any]:
        """Where a published code base cuts the prompts: "kvpress" or "ffy0" (see kvbench/data/splits.py).

        Raises ValueError when the folder has no such file.
        """
        path = self._file(LONGBENCH_CONFIG, f"config/{name}_split.json")
        if path is None:
            raise ValueError(
                f"benchmark.protocol={_PRESETS.get(name, name)}: needs config/{name}_split.json, which is not in "
                f"{self.root}; `{COMMAND} --from {self.root}` writes it, then use benchmark.path=null"
            )
        return _json(path)

    def available(self) -> list[str]:
        """The datasets that have a file here, in upstream's order."""
        return [name for name in LONGBENCH_ROWS if self._file(LONGBENCH_DATA, f"data/{name}.jsonl")]

    def check(self, dataset: str) -> int:
        """Read a dataset's file, validate every row, and return their number. Raises ValueError."""
        return self._look(dataset)[0]

    def checksum(self, dataset: str) -> str:
        """The sha256 of a dataset's file. Raises ValueError as `check` does."""
        return self._look(dataset)[1]

    def complete(self, dataset: str) -> bool:
        """Whether the file has all of upstream's rows. Raises ValueError as `check` does."""
        return self.check(dataset) == LONGBENCH_ROWS[dataset]

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """All rows in file order, with upstream's eight fields. Raises ValueError as `check` does."""
        return self._read(dataset, self._path(dataset))

    def _look(self, dataset: str) -> tuple[int, str]:
        path = self._path(dataset)
        key = _key(path, dataset)
        if key not in _checked:
            self._read(dataset, path)
        return _checked[key]

    def _read(self, dataset: str, path: Path) -> list[dict[str, Any]]:
        key = _key(path, dataset)
        found, checksum = rows.read(path, dataset)
        # without a manifest nobody promised anything
        if self.files.get(f"data/{dataset}.jsonl", checksum) != checksum:
            raise ValueError(f"{path}: changed since it was prepared; get the file anew: {COMMAND} --force")
        _checked[key] = len(found), checksum
        return found

    def _path(self, dataset: str) -> Path:
        if dataset not in LONGBENCH_ROWS:
            near = get_close_matches(dataset, LONGBENCH_ROWS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(LONGBENCH_ROWS)}"
            raise ValueError(f"benchmark.datasets: {dataset!r} is not a dataset of LongBench; {hint}")
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
    """Open a folder of LongBench files; None: the one that `python -m kvbench.data longbench` prepared.

    The files may lie as upstream has them: x.jsonl in the folder, in data/ or dev/; the configuration in config/,
    LongBench/config/ or ../config/. Raises ValueError for a folder without templates, or with damaged ones.
    """
    if path is None:
        root = manifest.home("longbench")
        if not manifest.read(root):
            what = "was not finished" if root.is_dir() else "is not there"
            raise ValueError(
                f"benchmark.path=null: LongBench {what} in {root}; run `{COMMAND}`, or set benchmark.path to a folder "
                "with upstream's files"
            )
    else:
        root = Path(path).expanduser()
        if not os.path.isdir(root):  # which is False for an impossible name, too
            raise ValueError(f"benchmark.path={path}: no such folder; null uses what `{COMMAND}` prepared")
    files = {name: entry.get("sha256", "") for name, entry in manifest.read(root).get("files", {}).items()}
    read = {}
    for name, reader in (("dataset2prompt", read_prompts), ("dataset2maxlen", read_max_new_tokens)):
        file = local_file(LONGBENCH_CONFIG, root, f"config/{name}.json")
        if file is None:
            raise ValueError(
                f"benchmark.path={path}: no config/{name}.json in {root} or beside it; copy LongBench/config of the "
                "repository THUDM/LongBench there"
            )
        read[name] = _with_e(reader(file))
        if files.get(f"config/{name}.json", "") not in ("", manifest.sha256(file)):
            raise ValueError(f"{file}: changed since it was prepared; get the file anew: {COMMAND} --force")
    return Folder(root, read["dataset2prompt"], read["dataset2maxlen"], files)


def local_file(source: Source, folder: Path, name: str) -> Path | None:
    """Where a folder in one of the usual layouts has a file, or None."""
    for pattern in source.local:
        path = folder / pattern.format(path=name, name=Path(name).name)
        if path.is_file():
            return path
    return None


def read_prompts(path: Path) -> dict[str, str]:
    """The templates by dataset. Raises ValueError when one is not a template with {context}."""
    prompts = _json(path)
    for name, template in prompts.items():
        if not isinstance(template, str):
            raise ValueError(f"{path}: the template of {name} is not a text; copy the file again from upstream")
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        except ValueError as error:
            raise ValueError(f"{path}: the template of {name} has a stray brace ({error})") from None
        if "context" not in fields:
            raise ValueError(f"{path}: the template of {name} has no {{context}}")
        if unknown := sorted(fields - _FIELDS):
            raise ValueError(f"{path}: the template of {name} asks for {{{unknown[0]}}}, which no row has")
    return prompts


def read_max_new_tokens(path: Path) -> dict[str, int]:
    """The answer lengths by dataset. Raises ValueError for anything but positive whole numbers."""
    lengths = _json(path)
    for name, value in lengths.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{path}: {name} must have a whole number of tokens, 1 or more, and has {value!r}")
    return lengths


def write_splits(folder: Path) -> list[str]:
    """Derive config/kvpress_split.json and config/ffy0_split.json from the templates there; return their names.

    Files that are right already are left alone. Raises ValueError for damaged templates.
    """
    prompts = read_prompts(folder / "config" / "dataset2prompt.json")
    lengths = read_max_new_tokens(folder / "config" / "dataset2maxlen.json")
    if missing := sorted(set(prompts) - set(lengths)):
        raise ValueError(f"{folder}/config/dataset2maxlen.json: no entry for {missing[0]}")
    made = {"kvpress": splits.kvpress(prompts), "ffy0": splits.ffy0(prompts, lengths)}
    names = []
    for name in splits.NAMES:
        path = folder / "config" / f"{name}_split.json"
        text = json.dumps(made[name], ensure_ascii=False, indent=1) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
        names.append(f"config/{path.name}")
    return names


def _with_e(by_dataset: dict[str, Any]) -> dict[str, Any]:
    plain = {name: name.removesuffix("_e") for name in LONGBENCH_ROWS}
    return by_dataset | {name: by_dataset[key] for name, key in plain.items() if name != key and key in by_dataset}


def _key(path: Path, dataset: str) -> tuple[str, str, int, int]:
    status = path.stat()
    return str(path.resolve()), dataset, status.st_size, status.st_mtime_ns


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); get it anew: {COMMAND} --force") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; get it anew: {COMMAND} --force")
    return value
