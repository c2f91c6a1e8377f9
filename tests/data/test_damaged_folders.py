"""Damaged data folders of every kind: each ends in one line that names a file or a setting, never in a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kvbench.benchmarks.base import ModelFacts
from kvbench.benchmarks.jsonl import JsonLines
from kvbench.benchmarks.longbench import LongBench
from kvbench.benchmarks.ruler.suite import Ruler
from kvbench.common.paths import conf_dir
from kvbench.data import inventory
from tests.helpers.longbench_made_up import write_bundle
from tests.helpers.needle_forms import make
from tests.helpers.ruler_sources import generate, write_sources
from tests.helpers.tokenizers_for_tests import gpt_style

VALUES: list[Any] = [None, True, -1, 10**30, 1.5, float("nan"), "", " ", "\ud800", [], [None], {}, {"a": {}}, [[["x"]]]]
FACTS = ModelFacts("tiny", max_length=None)


def damages(file: Path, seed: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield names and functions that damage one file: its bytes, its kind, and every value of its JSON."""
    data, rng = file.read_bytes(), random.Random(seed)
    yield "empty", lambda: file.write_bytes(b"")
    yield "cut", lambda: file.write_bytes(data[: len(data) // 2])
    yield "latin-1", lambda: file.write_bytes(data[:20] + "Grüße".encode("latin-1") + data[20:])
    yield "zeros", lambda: file.write_bytes(b"\0" * 200)
    yield "noise", lambda: file.write_bytes(rng.randbytes(500))
    yield "byte order mark", lambda: file.write_bytes(b"\xef\xbb\xbf" + data)
    yield "deep", lambda: file.write_bytes(b"[" * 100_000 + b"]" * 100_000)
    yield "html", lambda: file.write_bytes(b"<html><body>Sign in</body></html>\n")
    yield "gone", file.unlink
    yield "folder", lambda: (file.unlink(), file.mkdir())
    yield "link", lambda: (file.unlink(), file.symlink_to("nowhere"))
    yield "pipe", lambda: (file.unlink(), os.mkfifo(file))
    yield "json list", lambda: file.write_bytes(b"[1, 2]\n")
    yield "json number", lambda: file.write_bytes(b"1e400\n")
    if file.suffix in (".json", ".jsonl"):
        first = json.loads(data.split(b"\n")[0] if file.suffix == ".jsonl" else data)
        for key in list(first)[:8] if isinstance(first, dict) else []:
            for value in VALUES:
                changed = json.dumps(first | {key: value}).encode() + b"\n"
                yield f"{key}={value!r}"[:40], lambda changed=changed: file.write_bytes(changed)
            lacking = json.dumps({name: other for name, other in first.items() if name != key}).encode() + b"\n"
            yield f"no {key}", lambda lacking=lacking: file.write_bytes(lacking)


def check(folder: Path, names: list[str], use: Callable[[], object]) -> None:
    """Check that a folder with any file damaged in any way works, or ends in a ValueError of one short line."""
    copy = folder.with_name("whole")
    shutil.copytree(folder, copy)
    tried = refused = 0
    for name in names:
        for kind, damage in damages(folder / name, seed=3):
            damage()
            tried += 1
            try:
                use()
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 700, (name, kind)
                assert "benchmark." in str(error) or str(folder) in str(error), (name, kind, str(error))
            except Exception as error:
                pytest.fail(f"{name}, {kind}: {type(error).__name__}: {error}")
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            shutil.copy(copy / name, path)
    assert tried >= 14 * len(names) and refused >= 10 * len(names)


def settings(name: str) -> dict[str, Any]:
    node = OmegaConf.create({"benchmark": OmegaConf.load(conf_dir() / "benchmark" / f"{name}.yaml")})
    content: dict[str, Any] = OmegaConf.to_container(node, resolve=True)["benchmark"]  # type: ignore[index, call-overload]
    return {key: value for key, value in content.items() if key != "_target_"}


def run_all(suite: Any) -> None:
    tokenizer = gpt_style()
    for benchmark in suite.benchmarks(FACTS):
        json.dumps(benchmark.protocol())
        for sample in benchmark.samples(tokenizer):
            benchmark.score(sample.answers, "some answer", sample.meta)


def test_longbench(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", ["qasper", "trec"])
    names = ["data/qasper.jsonl", "data/trec.jsonl", "config/dataset2prompt.json", "config/dataset2maxlen.json"]
    for protocol in ("longbench-original", "kvpress"):
        suite = settings("longbench") | {"path": str(folder), "datasets": ["qasper", "trec"], "protocol": protocol}
        check(folder, names, lambda suite=suite: run_all(LongBench(**suite)))
        shutil.rmtree(tmp_path / "whole")


def test_jsonl(tmp_path: Path) -> None:
    row = {"context": "The code is 7305. ", "question": "What is the code?", "answers": ["7305"]}
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.jsonl").write_text("".join(json.dumps(row | {"id": f"n{number}"}) + "\n" for number in range(9)))
    check(
        folder, ["mine.jsonl"], lambda: run_all(JsonLines(**settings("jsonl") | {"path": str(folder / "mine.jsonl")}))
    )


def test_ruler_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    rows = generate("vt", 1500, "words", num_samples=2, sources="embedded")
    (folder / "vt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = settings("ruler") | {"files": str(folder), "tasks": ["vt"], "lengths": [1500]}
    check(folder, ["vt.jsonl"], lambda: run_all(Ruler(**suite)))


def test_ruler_sources(tmp_path: Path) -> None:
    folder = write_sources(tmp_path / "sources")
    base = settings("ruler") | {"path": str(folder), "lengths": [3000], "samples": 1, "tasks": ["all"]}

    def use() -> None:
        for benchmark in Ruler(**base).benchmarks(FACTS):
            benchmark.protocol()  # reads and checks all sources of its task

    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    check(folder, names, use)


def test_needle_haystacks(tmp_path: Path) -> None:
    folder = tmp_path / "essays"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text("This is a sentence. And this is another. " * 50)

    def use() -> None:
        benchmark = make(haystack=str(folder), lengths=[600], depths=[0, 50])
        benchmark.protocol()
        benchmark.samples(gpt_style())

    copy = tmp_path / "whole"
    shutil.copytree(folder, copy)
    for kind, damage in damages(folder / "a.txt", seed=4):
        damage()
        try:
            use()
        except ValueError as error:
            assert "\n" not in str(error) and "benchmark.haystack" in str(error), kind
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)


def test_inventories(tmp_path: Path) -> None:
    file = tmp_path / "x" / "manifest.json"
    file.parent.mkdir()
    value = {"bundle": "needle", "files": {"a.txt": {"sha256": "0" * 64, "bytes": 3}}, "missing": []}
    for _, damage in damages_of(file, value):
        damage()
        try:
            inventory.read(file.parent)
            inventory.verify(file.parent)
        except ValueError as error:
            assert "\n" not in str(error) and str(file.parent) in str(error)
        shutil.rmtree(file.parent)
        file.parent.mkdir()


def damages_of(file: Path, value: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the damages of a JSON file, which is written again before each."""
    file.write_text(json.dumps(value))
    for kind, damage in list(damages(file, seed=5)):
        file.write_text(json.dumps(value))
        yield kind, damage


def test_a_line_of_100_megabytes_is_refused_fast(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", ["qasper"])
    with (folder / "data" / "qasper.jsonl").open("ab") as file:
        file.write(b'{"input": "' + b"a" * 100_000_000 + b'"}\n')
    suite = LongBench(**settings("longbench") | {"path": str(folder), "datasets": ["qasper"]})
    with pytest.raises(ValueError, match=r"qasper.jsonl, line 3: 100000013 bytes, more than a sample can have"):
        suite.benchmarks(FACTS)[0].protocol()
