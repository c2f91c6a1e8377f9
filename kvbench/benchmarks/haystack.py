"""Haystacks: the texts that a needle is hidden in, from a folder of .txt files or generated.

Only as much of a folder is tokenised as a context needs, so its size costs reading time but no memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvbench.benchmarks.base import Tokenizer, encode
from kvbench.benchmarks.prose import generated
from kvbench.data import inventory
from kvbench.data.needle import essays_folder

_BLOCK = 1 << 20  # characters
_CHARS_PER_TOKEN = 8  # more than common tokenizers need; a text that needs more is read further
_MARGIN = 256  # tokens: where the text is cut, its last tokens can differ from those of the whole text


class Haystack(Protocol):
    """A text of known content, of which the beginning can be read."""

    def blocks(self) -> Iterator[str]:
        """Yield the text in pieces."""
        ...

    def head(self, chars: int) -> str:
        """Return the first `chars` characters or a few more, or the whole text where it is shorter."""
        ...


@dataclass(frozen=True)
class Essays:
    """The .txt files of a folder, joined in the order of their names.

    Raises ValueError, naming the file, for a folder without readable texts in UTF-8.
    """

    folder: Path

    def files(self) -> list[Path]:
        """Return the files in the order of their names."""
        if not self.folder.is_dir():
            raise ValueError(
                f"benchmark.haystack={self.folder}: no such folder; name one with .txt files, or set generated"
            )
        files = sorted(self.folder.glob("*.txt"))
        if not files:
            raise ValueError(f"benchmark.haystack={self.folder}: the folder holds no .txt files")
        for file in files:
            if not file.is_file():  # also a link to nowhere, and a named pipe, which would never end
                what = "a link to a file that does not exist" if file.is_symlink() else "not a file"
                raise ValueError(f"benchmark.haystack: {file} is {what}; remove it from the folder")
        return files

    def blocks(self) -> Iterator[str]:
        """Yield the text in pieces of about a million characters."""
        for path in self.files():
            try:
                with path.open(encoding="utf-8") as file:
                    while block := file.read(_BLOCK):
                        yield block
            except UnicodeDecodeError:
                raise ValueError(f"benchmark.haystack: {path} is not UTF-8; convert it, or remove it") from None
            except OSError as error:
                raise ValueError(f"benchmark.haystack: {path} cannot be read ({error.strerror})") from None

    def head(self, chars: int) -> str:
        """Return the beginning of the text."""
        pieces, length = [], 0
        for block in self.blocks():
            pieces.append(block[: chars - length])
            length += len(pieces[-1])
            if length >= chars:
                break
        return "".join(pieces)


@dataclass(frozen=True)
class Prose:
    """Generated prose of a seed, long enough for contexts of `tokens` tokens."""

    seed: int
    tokens: int

    def blocks(self) -> Iterator[str]:
        """Yield the text in one piece."""
        yield generated(self.seed, _CHARS_PER_TOKEN * self.tokens)

    def head(self, chars: int) -> str:
        """Return the text, whose length depends on `tokens` alone."""
        return "".join(self.blocks())


def haystacks(source: str, seeds: range, tokens: int) -> list[Haystack]:
    """Return one haystack per seed for "generated", else one for all seeds: the essays, or the folder `source`."""
    if source == "generated":
        return [Prose(seed, tokens) for seed in seeds]
    return [Essays(_prepared() if source == "essays" else Path(source).expanduser())]


def checksum(texts: list[Haystack]) -> str:
    """Return the sha256 of all texts. Raises ValueError as `Essays` does."""
    digest = hashlib.sha256()
    for index, text in enumerate(texts):
        digest.update(b"\0" if index else b"")
        for block in text.blocks():
            digest.update(block.encode())
    return digest.hexdigest()


def first_ids(tokenizer: Tokenizer, haystack: Haystack, length: int) -> list[int]:
    """Return at least `length` tokens of the beginning. A shorter haystack is repeated as text.

    Raises ValueError for a haystack without tokens.
    """
    chars = _CHARS_PER_TOKEN * (length + _MARGIN)
    while True:
        text = haystack.head(chars)
        ids = encode(tokenizer, text)
        if len(text) < chars:  # the whole haystack
            return _repeated(tokenizer, text, ids, length)
        if len(ids) >= length + _MARGIN or isinstance(haystack, Prose):
            return ids
        chars *= 2


def _repeated(tokenizer: Tokenizer, text: str, ids: list[int], length: int) -> list[int]:
    if not ids:
        raise ValueError("benchmark.haystack: the text is empty")
    repeats = 1
    while len(ids) < length:  # once, unless joining the copies merged tokens
        repeats = max(repeats + 1, -(-length * repeats // len(ids)))
        ids = encode(tokenizer, text * repeats)
    return ids


def _prepared() -> Path:
    """Return the folder of the essays that the published tests use. Raises ValueError where it is not prepared."""
    folder = essays_folder()
    if folder is None:
        raise ValueError(
            "benchmark.haystack=essays: not there yet; run `kvbench data needle`, or set "
            "benchmark.haystack=generated or a folder of .txt files"
        )
    if problems := inventory.verify(folder.parent):
        raise ValueError(f"{folder.parent}/{problems[0]}; fetch it again: kvbench data needle --force")
    return folder
