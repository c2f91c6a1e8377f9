"""The command `kvbench data`: its output, its exit status, and the data that benchmarks find afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvbench.data import inventory, longbench, needle, sources
from kvbench.data.__main__ import main
from kvbench.data.sources import BUNDLES, LONGBENCH_DATA, Source
from tests.helpers import longbench_bundle as bundle
from tests.helpers.data_server import running
from tests.helpers.data_world import SQUAD, World
from tests.helpers.outside import DATA, golden

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        yield World(server, tmp_path / "to")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def made_up_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """LongBench without the checksums of the real templates."""
    config = sources.LONGBENCH_CONFIG
    free = Source(config.kind, config.addresses, config.members, config.remedy, config.local, needed=True)
    monkeypatch.setitem(BUNDLES, "longbench", (free, LONGBENCH_DATA))


@pytest.mark.usefixtures("made_up_templates")
def test_longbench_from_a_folder_is_ready_for_use(tmp_path: Path, run: Run) -> None:
    origin = bundle.write(tmp_path / "got", data="dev", qasper=3, lcc=500)
    status, out, err = run("longbench", "--from", origin)
    assert (status, err) == (0, "")
    assert "2 of 34 data sets, 1 of them complete" in out and "not for published numbers: qasper 3/200" in out
    assert "4 files new, 4 in all" in out
    folder = longbench.find(None)
    assert folder.available() == ["qasper", "lcc"] and folder.check("qasper") == 3
    assert folder.splits("kvpress")["answer_prefix"]["qasper"] == "Answer:"
    assert run("longbench", "--check")[0] == 0
    status, out, err = run("longbench", "--from", origin)
    assert status == 0 and "already there: 4 files" in out
    (tmp_path / "cache" / "data" / "longbench" / "data" / "lcc.jsonl").write_text("{}")
    status, out, err = run("longbench", "--check")
    assert status == 1 and "data/lcc.jsonl: was changed after it was prepared; fetch it again: kvbench data" in err


@pytest.mark.usefixtures("made_up_templates")
def test_longbench_from_the_archive_got_by_hand(tmp_path: Path, run: Run) -> None:
    origin = bundle.write(tmp_path / "got", trec=2, qmsum=1)
    with zipfile.ZipFile(origin / "data.zip", "w") as archive:
        for name in ("trec", "qmsum"):
            archive.write(origin / "data" / f"{name}.jsonl", f"data/{name}.jsonl")
            (origin / "data" / f"{name}.jsonl").unlink()
    status, out, err = run("longbench", "--from", origin, "--to", tmp_path / "to")
    assert (status, err) == (0, "") and "2 of 34 data sets" in out
    assert longbench.find(str(tmp_path / "to")).check("trec") == 2
    assert (origin / "data.zip").is_file()


@pytest.mark.usefixtures("made_up_templates")
def test_a_truncated_file_is_named_and_the_others_prepared(tmp_path: Path, run: Run) -> None:
    origin = bundle.write(tmp_path / "got", trec=2, qmsum=2)
    path = origin / "data" / "trec.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    status, _, err = run("longbench", "--from", origin)
    assert status == 1 and err.startswith(f"  {path}, line 2: cut off or not JSON") and err.count("\n") == 1
    assert longbench.find(None).available() == ["qmsum"]


def test_longbench_without_templates_is_of_no_use(tmp_path: Path, run: Run) -> None:
    origin = bundle.write(tmp_path / "got", trec=2)
    (origin / "config" / "dataset2prompt.json").unlink()
    (origin / "config" / "dataset2maxlen.json").unlink()
    status, _, err = run("longbench", "--from", origin)
    assert (
        status == 1 and "not in" in err and "config/dataset2prompt.json, config/dataset2maxlen.json; copy Long" in err
    )


def test_templates_of_another_version_are_refused(tmp_path: Path, run: Run) -> None:
    status, _, err = run("longbench", "--from", bundle.write(tmp_path / "got", trec=2))
    assert status == 1 and "dataset2prompt.json: sha256 is" in err and "--force takes it as it is" in err


def test_all_parts_from_one_folder(world: World, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("longbench", "ruler", "needle"):
        monkeypatch.setitem(BUNDLES, part, tuple(world.sources[:1]))
        (tmp_path / "got" / part).mkdir(parents=True)
        (tmp_path / "got" / part / "words.txt").write_text("noun\nword\n")
    status, out, err = run("all", "--from", tmp_path / "got", "--to", tmp_path / "to")
    assert (status, err) == (0, "") and out.count("1 files new") == 3
    assert (tmp_path / "to" / "needle" / "words.txt").is_file()
    assert run("all", "--check", "--to", tmp_path / "to")[0] == 0


def test_the_network_on_the_command_line(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLES, "ruler", tuple(world.sources[:3]))
    world.server.files.pop("/dev.json")
    status, out, err = run("ruler")
    assert status == 1 and "2 files new" in out and "recorded" not in out
    assert err == f"  squad.json: {world.server.url}/dev.json answers 404 Not Found; get it elsewhere\n"
    world.server.files["/dev.json"] = json.dumps(SQUAD).encode()
    status, out, err = run("ruler")
    assert (status, err) == (0, "") and "checksum not known in advance, now recorded: squad.json" in out


def test_mistakes_on_the_command_line(tmp_path: Path, run: Run) -> None:
    assert run("needle", "--check")[2].endswith(
        "no manifest.json, so nothing was prepared here or it was not finished\n"
    )
    status, _, err = run("needle", "--from", tmp_path / "nowhere")
    assert status == 2 and err == f"kvbench: needle: --from {tmp_path}/nowhere: no such folder\n"
    (tmp_path / "file").write_text("")
    status, _, err = run("needle", "--from", tmp_path, "--to", tmp_path / "file" / "x")
    assert status == 2 and err.startswith("kvbench: needle: ") and err.count("\n") == 1
    folder = tmp_path / "cache" / "data" / "needle"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    assert "manifest.json: cut off or not JSON" in run("needle", "--check")[2]
    status, _, err = run("nothing")
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("kvbench: argument bundle: invalid choice: 'nothing'")


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "prepare_data"
    assert os.access(script, os.X_OK)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(script), "needle", "--check", "--to", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "nothing was prepared here" in done.stderr


def test_the_table_of_sources_is_consistent() -> None:
    assert sum(sources.LONGBENCH_ROWS[name] for name in sources.LONGBENCH_ROWS if not name.endswith("_e")) == 4750
    assert len(sources.LONGBENCH_ROWS) == 34 and len(BUNDLES["needle"][0].members) == 49
    for part in BUNDLES.values():
        for source in part:
            assert set(source.sha256) <= set(source.members)
            assert all(len(value) == 64 for value in source.sha256.values())


# ---- the real data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        pytest.param("longbench", {"known", "recorded"}, marks=golden("longbench")),
        pytest.param("ruler", {"known", "differs"}, marks=golden("ruler")),
        pytest.param("needle", {"known"}, marks=golden("needle")),
    ],
)
def test_the_shared_data_is_the_known_data(part: str, kinds: set[str], run: Run) -> None:
    status, _, err = run(part, "--from", DATA / part)
    assert (status, err) == (0, "")
    files = inventory.read(inventory.home(part))["files"]
    assert {entry["checked"] for entry in files.values()} == kinds
    if part == "needle":
        folder = needle.essays_folder()
        assert folder is not None and len(list(folder.glob("*.txt"))) == 49
    if part == "longbench":
        assert len(longbench.find(None).available()) == 21
