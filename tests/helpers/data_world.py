"""Sources of every kind of trust, made up, on a server of this machine, and a folder to fill from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvbench.data.prepare import Preparation, combined, prepare
from kvbench.data.sources import Source
from tests.helpers.data_server import Server

SQUAD = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [], "is_impossible": True}]}]}]}
HOTPOT = [{"question": "q", "answer": "a", "context": [["title", ["One.", "Two."]]]}]
ESSAYS = {"x/b.txt": "Essay b.\n", "x/a.txt": "Essay a.\n"}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class World:
    """A server with the made-up sources of a bundle, and a folder to fill."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.said = server, folder, list[str]()
        squad, hotpot, words = json.dumps(SQUAD), json.dumps(HOTPOT), "noun\nword\n"
        total = combined({name: digest(text) for name, text in ESSAYS.items()})
        host = f"{server.url}/"
        self.sources = [
            Source("url", (host,), {"words.txt": "w.txt"}, "get it", sha256={"words.txt": digest(words)}),
            Source("url", (host,), {"squad.json": "dev.json"}, "get it elsewhere"),
            Source(
                "url",
                (host,),
                {"hotpotqa.json": "hp.json"},
                "x",
                sha256={"hotpotqa.json": digest(hotpot)},
                strict=False,
            ),
            Source("url", (host,), {name: name for name in ESSAYS}, "copy them", ("{path}", "{name}"), combined=total),
        ]
        texts = {"/w.txt": words, "/dev.json": squad, "/hp.json": hotpot}
        server.files = {path: text.encode() for path, text in texts.items()}
        server.files |= {f"/{name}": text.encode() for name, text in ESSAYS.items()}

    def prepare(self, **options: Any) -> Preparation:
        self.server.requests.clear()
        return prepare("made-up", self.sources, self.folder, say=self.said.append, **options)

    def asked(self) -> list[str]:
        return [path for _, path, _ in self.server.requests]

    def state(self) -> dict[str, tuple[bytes, int]]:
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(self.folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
