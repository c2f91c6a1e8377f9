"""The HTML file: templates, the index and the answers as compressed data, and parts where they are too large for one.

Texts of a store are never written as HTML. They are inside of compressed base64, which no text can break out of, and
the script puts them into text nodes. The page's policy allows its own script and style alone, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from kvbench import __version__
from kvbench.common.files import write_atomic
from kvbench.report.view.answers import read_blocks, tasks_of
from kvbench.report.view.tables import arrange, index_of
from kvbench.store import RunNumbers

LIMIT = 10_000_000  # bytes of a page that holds all answers
_MANY = 100_000  # samples from which on answers are compressed fast
_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = (
    "dom", "data", "diff", "board", "charts", "grids", "samples", "sample", "kept", "variant", "keys", "app",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """The files of a view: the page, its size in bytes, and the parts in `folder`, if there are any."""

    page: Path
    size: int
    runs: int
    samples: int
    folder: Path
    parts: int


class Answers:
    """The packed answers: inside of the page while they are few, in files of their own as soon as they are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inside: list[str] = []
        self.parts = 0
        self._size = 0

    def add(self, packed: bytes) -> None:
        """Take the next block; its name is how many came before."""
        text = base64.b64encode(packed).decode()
        if self.parts:
            self._write(text)
            return
        self.inside.append(text)
        self._size += len(text)
        if self._size > LIMIT * 0.95:  # the index needs some room, too
            for held in self.inside:
                self._write(held)
            self.inside = []

    def _write(self, text: str) -> None:
        name = str(self.parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.js").write_text(f'kvbenchPart("{name}","{text}")\n', encoding="ascii")
        self.parts += 1

    def remove_old_parts(self) -> None:
        """Delete the parts of an earlier, larger view of the same name; other files stay."""
        for file in self.folder.glob("*.js") if self.folder.is_dir() else ():
            if re.fullmatch(r"\d+\.js", file.name) and int(file.stem) >= self.parts:
                file.unlink()
        if not self.parts and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def write(runs: Sequence[RunNumbers], out: Path, store: str, answers: bool = True) -> Written:
    """Write the page of some runs, and return what was written. The same runs give the same bytes."""
    tables = arrange(runs)
    samples = sum(len(run.columns.ids) for run in runs)
    level = 3 if samples > _MANY else 9
    columns = [table.column(name) for table in tables for name in table.columns]
    tasks = [task for column in columns for task in tasks_of(column, level)] if answers else []
    places = {path: (str(at), slot) for at, task in enumerate(tasks) for slot, path in enumerate(task.paths)}
    indices = [index_of(table, places) for table in tables]
    folder = out.with_name(f"{out.stem}-parts")
    packed = Answers(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    for block in tqdm(read_blocks(tasks, samples), "answers", len(tasks), leave=False, disable=None):
        packed.add(block)
    content = {
        "store": store,
        "version": f"kvbench {__version__}",
        "parts": quote(folder.name) if packed.parts else "",
        "answers": answers,
        "tables": indices,
    }
    html = page(content, packed.inside)
    write_atomic(out, html)
    packed.remove_old_parts()
    return Written(out, len(html.encode()), len(runs), samples, folder, packed.parts)


def page(index: object, blocks: Sequence[str]) -> str:
    """Return the HTML of an index and of the blocks that it holds itself."""
    script = '"use strict";\n' + "\n".join(_asset(f"{name}.js") for name in _SCRIPTS) + "\nstart();\n"
    style = _asset("style.css")
    text = json.dumps(index, separators=(",", ":"), allow_nan=False)
    data = [_data("index", base64.b64encode(zlib.compress(text.encode(), 9)).decode())]
    data += [_data(f"block-{name}", block) for name, block in enumerate(blocks)]
    # parts lie next to the page, which has no origin of its own when it is opened from a disk
    allowed = "" if blocks else " 'self' file:"
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'{allowed}; "
    policy += "img-src data:; base-uri 'none'; form-action 'none'"
    values = {"policy": policy, "style": style, "script": script, "data": "\n".join(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _asset("page.html"))


def _data(name: str, text: str) -> str:
    return f'<script type="application/octet-stream" id="{name}">{text}</script>'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
