"""Transfers: whole, broken off, resumed, refused; wheels and archives. The network is a server on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvbench.data import fetch
from kvbench.data.sources import Source
from tests.helpers.data_server import Server, running

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        server.files["/a.json"] = CONTENT
        yield server


def get(server: Server, folder: Path) -> bytes:
    target = folder / "deep" / "a.json"
    fetch.download(f"{server.url}/a.json", target)
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]
    return target.read_bytes()


def ranges(server: Server) -> list[str | None]:
    return [asked for _, _, asked in server.requests]


def test_a_whole_file(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path) == CONTENT
    assert ranges(server) == [None]


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.stops["/a.json"] = [100_000, 50_000]
    assert get(server, tmp_path) == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_call_goes_on_too(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stops["/a.json"] = [70_000]
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "ATTEMPTS", 1)
        with pytest.raises(fetch.Unreachable, match="a.json broke off; the next call continues from there"):
            get(server, tmp_path)
    assert (tmp_path / "deep" / "a.json.part").stat().st_size == 70_000
    assert not (tmp_path / "deep" / "a.json").exists()
    assert get(server, tmp_path) == CONTENT
    assert ranges(server) == [None, "bytes=70000-"]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.stops["/a.json"] = False, [100_000]
    assert get(server, tmp_path) == CONTENT


def test_a_file_that_changed_meanwhile_is_not_patched_together(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stops["/a.json"] = [100_000]
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "ATTEMPTS", 1)
        with pytest.raises(fetch.Unavailable):
            get(server, tmp_path)
    server.files["/a.json"], server.tags["/a.json"] = CONTENT[::-1], '"two"'
    assert get(server, tmp_path) == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.json.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path) == CONTENT


def test_a_missing_file_says_so_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(fetch.Unavailable, match=r"nowhere.json answers 404 Not Found$"):
        fetch.download(f"{server.url}/nowhere.json", tmp_path / "a.json")
    assert len(server.requests) == 1


def test_nobody_there_says_so_soon(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        before = time.monotonic()
        with pytest.raises(fetch.Unreachable, match="cannot be reached"):
            fetch.download(f"{url}/a.json", tmp_path / "a.json")
        with pytest.raises(fetch.Unavailable, match=f"^{url}/x/a.json cannot be reached [^;]*$"):
            source = Source("url", (f"{url}/x/", f"{url}/y/"), {"a.json": "a.json"}, "")
            fetch.fetch(source, ["a.json"], tmp_path)  # the same host is not asked again
        assert time.monotonic() - before < fetch.TIMEOUT, "nothing waits for an answer"


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(fetch.Unreachable, match="timed out"):
            fetch.download(f"http://127.0.0.1:{mute.getsockname()[1]}/a.json", tmp_path / "a.json")


def test_the_second_address_is_asked_when_the_first_has_moved(server: Server, tmp_path: Path) -> None:
    source = Source("url", (f"{server.url}/old/", f"{server.url}/"), {"b/ours.json": "a.json"}, "")
    fetch.fetch(source, ["b/ours.json"], tmp_path)
    assert (tmp_path / "b" / "ours.json").read_bytes() == CONTENT
    fetch.fetch(source, ["b/ours.json"], tmp_path)
    assert [path for _, path, _ in server.requests] == ["/old/a.json", "/a.json"]  # and nothing the second time


# ---- archives ------------------------------------------------------------------------------------


def make_zip(path: Path, files: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_a_wheel_comes_from_the_index_that_pip_is_set_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = {
        "some_words-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: some-words\nVersion: 1.0\n",
        "some_words-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "some_words-1.0.dist-info/RECORD": "",
    }
    make_zip(tmp_path / "index" / "some_words-1.0-py3-none-any.whl", {"some_words/list.txt": "word\n"} | meta)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    source = Source("wheel", ("some-words==1.0",), {"words/list.txt": "some_words/list.txt"}, "")
    fetch.fetch(source, ["words/list.txt"], tmp_path / "to")
    assert (tmp_path / "to" / "words" / "list.txt").read_text() == "word\n"
    other = Source("wheel", ("some-words==2.0",), {"list.txt": "some_words/list.txt"}, "")
    with pytest.raises(fetch.Unavailable, match=r"^pip download some-words==2.0 failed \(.+\)$"):
        fetch.fetch(other, ["list.txt"], tmp_path / "to")


def test_an_archive_of_the_hub_is_fetched_and_opened(server: Server, tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "data.zip", {"data/a.jsonl": "{}\n", "data/b.jsonl": "{}\n"})
    path = "/datasets/owner/name/resolve/main/data.zip"
    server.files[path], server.stops[path] = archive.read_bytes(), [100]
    code = """
import sys
from pathlib import Path
from kvbench.data import fetch
from kvbench.data.sources import Source
source = Source("hub", ("owner/name data.zip",), {"x/a.jsonl": "data/a.jsonl", "x/c.jsonl": "data/c.jsonl"}, "")
fetch.fetch(source, list(source.members), Path(sys.argv[1]))
"""
    home = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "to")]
    done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "to" / "x").iterdir()) == ["a.jsonl"]  # c is not in the archive
    assert server.requests == [("GET", path, None), ("GET", path, "bytes=100-")]
    server.files.clear()
    done = subprocess.run([*command[:3], str(tmp_path / "new")], env=os.environ | home, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(f"Unavailable: {server.url}{path} answers 404 Not Found")
    assert any(method == "HEAD" for method, _, _ in server.requests)  # the hub's own client was asked too


def test_nobody_at_the_hub_says_so_soon(tmp_path: Path) -> None:
    """The hub's own client would try for half a minute, so it is not asked."""
    code = """
import sys
from pathlib import Path
import huggingface_hub
from kvbench.data import fetch
huggingface_hub.hf_hub_download = lambda *_, **__: sys.exit("the client was asked")
fetch.hub_archive("o/n a.zip", Path(sys.argv[1]))
"""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        home = {"HF_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=300)
    assert "Unreachable: " in done.stderr.strip().splitlines()[-1]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "data.zip", {"a.txt": "text " * 1000})
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(fetch.Unavailable, match="data.zip is damaged"):
        fetch.unpack(archive, {"a.txt": "a.txt"}, tmp_path / "to")
    whole = make_zip(tmp_path / "whole.zip", {"a.txt": "text"})
    with pytest.raises(fetch.Unavailable, match="whole.zip holds no b.txt"):
        fetch.unpack(whole, {"b.txt": "b.txt"}, tmp_path / "to")
