"""Kept tokens of a run, token by token: a side file next to the records, which `save.kept=true` asks for.

    kept.jsonl      one line per sample: {"id", "tokens": texts, "shape": [layers, heads, tokens], "kept": mask}

The mask says which tokens each KV head stores right after compression: in C order, eight to a byte (numpy's
`packbits`), compressed by zlib, in base64. Shard i of n writes kept-<i>of<n>.jsonl. Runs without the file are as whole
as those with it, and reading it needs no torch.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

from kvbench.store.files import read_lines
from kvbench.store.validate import Pattern, Range, check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FILES = re.compile(r"kept(?:-[0-9]{1,9}of[0-9]{1,9})?\.jsonl")
_MOST = 2**33  # bits of a mask


class KeptLine(TypedDict):
    """A line of kept.jsonl."""

    id: Annotated[str, Pattern(r".{1,512}", "not 1 to 512 characters")]
    tokens: list[str]
    shape: list[Annotated[int, Range(1, 2**32)]]
    kept: str


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of a prompt, and which of them each head kept.

    Attributes:
        id: of the sample.
        tokens: the texts of the compressed tokens.
        mask_LUT: True where a token is kept, [layers, KV heads, tokens].
    """

    id: str
    tokens: Sequence[str]
    mask_LUT: NDArray[np.bool_]


def kept_line(kept: KeptTokens) -> bytes:
    """Return the line of a sample, with its newline."""
    import numpy as np

    packed = base64.b64encode(zlib.compress(np.packbits(kept.mask_LUT).tobytes(), 9)).decode()
    line: KeptLine = {
        "id": kept.id,
        "tokens": list(kept.tokens),
        "shape": list(kept.mask_LUT.shape),
        "kept": packed,
    }
    check(line, KeptLine)
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def kept_ids(folder: Path) -> set[str]:
    """Return the ids of the samples whose kept tokens are on file. Raises ValueError as `read_kept`."""
    return {line["id"] for file in _files(folder) for line in read_lines(file, _as_line)[0]}


def read_kept(folder: Path, wanted: Collection[str] | None = None) -> dict[str, KeptTokens]:
    """Return the kept tokens of a run by sample id, sorted; {} where none were saved. A later line replaces an earlier.

    Args:
        folder: the run folder.
        wanted: the ids to read; None for all.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    lines = {line["id"]: line for file in _files(folder) for line in read_lines(file, _as_line)[0]}
    chosen = sorted(lines if wanted is None else lines.keys() & set(wanted))
    return {name: _unpacked(lines[name], folder) for name in chosen}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("kept*.jsonl") if _FILES.fullmatch(file.name))


def _as_line(value: object) -> KeptLine:
    check(value, KeptLine)
    line = cast(KeptLine, value)
    shape = line["shape"]
    if len(shape) != 3 or shape[2] != len(line["tokens"]) or prod(shape) > _MOST:
        raise ValueError(f"shape {shape} is not [layers, heads, {len(line['tokens'])} tokens]")
    return line


def _unpacked(line: KeptLine, folder: Path) -> KeptTokens:
    import numpy as np

    size = prod(line["shape"])
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(line["kept"], validate=True), -(-size // 8) + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"{folder}: kept tokens of {line['id']!r} are damaged ({error}); delete kept.jsonl") from None
    if len(data) != -(-size // 8):
        raise ValueError(f"{folder}: kept tokens of {line['id']!r} do not fit their shape; delete kept.jsonl")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=size).astype(bool)
    return KeptTokens(line["id"], line["tokens"], bits.reshape(line["shape"]))
