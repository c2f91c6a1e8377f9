"""Preparing a folder: partly, again, by force, from a copy. The network is a server on this machine."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kvbench.data import fetch, inventory
from tests.helpers.data_server import running
from tests.helpers.data_world import HOTPOT, SQUAD, World, digest


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        yield World(server, tmp_path / "to")


NAMES = ["hotpotqa.json", "manifest.json", "squad.json", "words.txt", "x/a.txt", "x/b.txt"]


def test_everything_there(world: World) -> None:
    done = world.prepare()
    assert (done.problems, done.missing, sorted(done.new)) == ([], [], sorted(set(NAMES) - {"manifest.json"}))
    assert sorted(world.state()) == NAMES
    value = inventory.read(world.folder)
    assert value["bundle"] == "made-up" and value["missing"] == []
    assert value["files"]["words.txt"] == {"sha256": digest("noun\nword\n"), "bytes": 10, "checked": "known"}
    assert value["files"]["squad.json"]["checked"] == "recorded"
    assert inventory.verify(world.folder) == []


def test_the_second_call_asks_nobody_and_changes_nothing(world: World) -> None:
    world.prepare()
    before = world.state()
    done = world.prepare()
    assert (done.new, done.problems, world.asked()) == ([], [], [])
    assert world.state() == before


def test_what_cannot_be_had_is_named_and_the_rest_prepared(world: World) -> None:
    dev = world.server.files.pop("/dev.json")
    done = world.prepare()
    assert done.problems == [f"squad.json: {world.server.url}/dev.json answers 404 Not Found; get it elsewhere"]
    assert done.missing == ["squad.json"] == inventory.read(world.folder)["missing"]
    world.server.files["/dev.json"] = dev
    done = world.prepare()
    assert (done.problems, done.new, world.asked()) == ([], ["squad.json"], ["/dev.json"])


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("/w.txt", b"other\n", "words.txt: sha256 is "),
        ("/dev.json", b'{"data": [', "squad.json: cut off or not JSON ("),
        ("/dev.json", b"<html>log in</html>", "squad.json: cut off or not JSON ("),
        ("/dev.json", b'{"data": []}', "squad.json: JSON, but not of the layout of squad.json"),
        ("/dev.json", b'{"data": [{"paragraphs": 3}]}', "squad.json: JSON, but not of the layout of squad.json"),
        ("/hp.json", b"{}", "hotpotqa.json: JSON, but not of the layout of hotpotqa.json"),
        ("/hp.json", b'[{"question": "q"}]', "hotpotqa.json: JSON, but not of the layout of hotpotqa.json"),
        ("/x/a.txt", b"Essay c.\n", "x/b.txt and 1 more: not the known files, by checksum; copy them"),
    ],
)
def test_wrong_content_does_not_count(world: World, path: str, content: bytes, says: str) -> None:
    right, world.server.files[path] = world.server.files[path], content
    done = world.prepare()
    assert len(done.problems) == 1 and done.problems[0].startswith(says) and "\n" not in done.problems[0]
    assert inventory.verify(world.folder) == []
    world.server.files[path] = right
    assert world.prepare().missing == []


def test_changed_files_are_noticed_and_fetched_again(world: World) -> None:
    world.prepare()
    (world.folder / "words.txt").write_text("NOUN\nword\n")  # of the same size
    (world.folder / "squad.json").write_text("{}")
    (world.folder / "hotpotqa.json").unlink()
    assert inventory.verify(world.folder) == [
        "hotpotqa.json: is gone",
        "squad.json: was changed after it was prepared",
        "words.txt: was changed after it was prepared",
    ]
    assert sorted(world.prepare().new) == ["hotpotqa.json", "squad.json"]
    assert world.prepare(force=True).new == ["words.txt"]
    assert inventory.verify(world.folder) == []


def test_force_fetches_all_and_puts_only_news_in_place(world: World) -> None:
    world.prepare()
    before = world.state()
    done = world.prepare(force=True)
    assert done.new == [] and len(world.asked()) == 5 and world.state() == before


def test_files_without_a_manifest_are_taken_over_when_they_are_good(world: World) -> None:
    """The state is that after a crash before the last step."""
    world.prepare()
    (world.folder / "manifest.json").unlink()
    (world.folder / "words.txt").write_text("other")
    (world.folder / "squad.json").write_text("{")
    done = world.prepare()
    assert sorted(done.new) == ["squad.json", "words.txt", "x/a.txt", "x/b.txt"]
    assert "/hp.json" not in world.asked() and inventory.verify(world.folder) == []


def test_no_manifest_while_files_are_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.prepare()
    world.server.files["/dev.json"] = json.dumps(SQUAD | {"version": 2}).encode()
    replace = os.replace

    def crash(source: Any, target: Any) -> None:
        if str(target).endswith("to/squad.json"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", crash)
        world.prepare(force=True)
    assert inventory.read(world.folder) == {}
    assert world.prepare().missing == [] and inventory.verify(world.folder) == []


def test_an_interrupted_transfer_goes_on_in_the_next_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.server.stops["/hp.json"] = [10]
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "ATTEMPTS", 1)
        assert "broke off" in world.prepare().problems[0]
    assert world.prepare().new == ["hotpotqa.json"]
    assert world.server.requests == [("GET", "/hp.json", "bytes=10-")]
    assert not (world.folder / ".download").exists()


def test_one_at_a_time(world: World) -> None:
    world.folder.mkdir()
    lock = FileLock(world.folder / ".lock")
    with lock:
        thread = threading.Thread(target=world.prepare)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and "waiting" in world.said[0] and not (world.folder / "words.txt").exists()
    thread.join(10)
    assert inventory.verify(world.folder) == []


# ---- from a folder -------------------------------------------------------------------------------


@pytest.fixture
def origin(world: World, tmp_path: Path) -> Path:
    world.prepare()
    world.folder.rename(tmp_path / "from")
    (tmp_path / "from" / "manifest.json").unlink()
    return tmp_path / "from"


def test_a_folder_is_copied_without_asking_anybody(world: World, origin: Path) -> None:
    (origin / "squad.json").unlink()
    done = world.prepare(origin=origin)
    assert (done.problems, done.missing, world.asked()) == ([], ["squad.json"], [])
    before = world.state()
    assert world.prepare(origin=origin).new == [] and world.state() == before
    assert world.prepare().new == ["squad.json"]  # the rest comes from the network


def test_newer_files_in_the_folder_replace_older_ones(world: World, origin: Path) -> None:
    world.prepare(origin=origin)
    (origin / "squad.json").write_text(json.dumps(SQUAD | {"version": 2}))
    assert world.prepare(origin=origin).new == ["squad.json"]


def test_another_version_is_refused_or_marked(world: World, origin: Path) -> None:
    (origin / "words.txt").write_text("other\n")
    (origin / "hotpotqa.json").write_text(json.dumps(HOTPOT * 2))
    done = world.prepare(origin=origin)
    assert len(done.problems) == 1 and done.problems[0].startswith(f"{origin}/words.txt: sha256 is ")
    assert done.problems[0].endswith("another version; --force takes it as it is")
    assert done.files["hotpotqa.json"]["checked"] == "differs"  # this source allows for editions
    done = world.prepare(origin=origin, force=True)
    assert done.problems == [] and done.files["words.txt"]["checked"] == "differs"
    assert world.prepare().new == []


def test_a_bad_file_in_the_folder_is_named_with_its_place(world: World, origin: Path) -> None:
    (origin / "squad.json").write_text("{")
    assert world.prepare(origin=origin).problems[0].startswith(f"{origin}/squad.json: cut off or not JSON")


def test_an_unsuitable_folder(world: World, origin: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = world.prepare(origin=tmp_path / "empty")
    assert done.problems == [f"--from {tmp_path}/empty: holds no file of made-up, such as a.txt"]
    assert inventory.read(world.folder) == {}
    with pytest.raises(ValueError, match="this is the folder to fill"):
        world.prepare(origin=world.folder)
