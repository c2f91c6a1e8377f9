"""The files of a model folder: what identifies them, and whether they are complete. Needs no torch.

Everything is learned from names, sizes and headers, fast for a model of any size.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.common.kinds import is_integer

if TYPE_CHECKING:
    from hashlib import _Hash

MIB = 1 << 20
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_LARGEST_JSON = 64 * MIB  # a tokenizer.json takes up to 35 MB
# Files that shape token ids, prompts or weights, by suffix: configs and templates, vocabularies, weights.
_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".vocab", ".bpe", ".spm", ".safetensors")
_TEXTS = ("readme", "license", "notice", "requirements", "use_policy")  # .txt files that do neither
_OBJECTS = (  # JSON files that hold a dictionary
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    INDEX,
)
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
_BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}


@dataclass(frozen=True)
class Stored:
    """A tensor in a weight file: its shape, and its type by the format's names (F32, BF16, I32, ...)."""

    file: str
    shape: tuple[int, ...]
    dtype: str


def identity(folder: Path, with_code: bool) -> str:
    """Return a hash of all files that shape ids, prompts or weights, wherever the folder lies.

    Small files are hashed whole; of a weight file, its size, header, first and last MiB.

    Args:
        with_code: the folder's own Python files run, so they count as well.

    Raises:
        ValueError: a file that is missing, unreadable or incomplete; names it.
    """
    digest = hashlib.sha256()
    for path in _files(folder, with_code):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(max(_header_end(path), MIB))
                file.seek(max(0, size - MIB))
                _add(digest, f"{name} {size}", head + file.read())
        else:
            _add(digest, name, path.read_bytes())
    return digest.hexdigest()


def check(folder: Path) -> None:
    """Raise ValueError, one line that names the file, for a folder whose files are not complete."""
    for path in _files(folder, with_code=False):
        if path.name in _OBJECTS and path.parent == folder:
            read_json(path)
    tensors(folder)


def read_json(path: Path) -> dict[str, object]:
    """Return the dictionary in a JSON file. Raises ValueError that names the file."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, more than {_LARGEST_JSON}")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from error
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        if str(error).startswith(path.name):
            raise
        raise ValueError(f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not hold a dictionary")
    return content


def tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors that loading will read, by name, from the headers of the weight files.

    Raises:
        ValueError: a weight file is missing, cut short or inconsistent; names it.
    """
    if (folder / WHOLE).exists() or (folder / WHOLE).is_symlink():
        return _header(folder / WHOLE)
    if not (folder / INDEX).is_file():
        raise ValueError(f"neither {WHOLE} nor {INDEX} is there; other weight formats are not loaded")
    index = read_json(folder / INDEX)
    where = index.get("weight_map")
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{INDEX} has no metadata, which transformers wants to read")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise ValueError(f"{INDEX} has no weight_map that gives the file of each tensor")
    stored: dict[str, Stored] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file or file in ("", ".", ".."):
            raise ValueError(f"{INDEX} names {file!r}, which is not a file of this folder")
        stored |= _header(folder / file)
    lost = sorted(name for name, file in where.items() if name not in stored or stored[name].file != file)
    if lost:
        raise ValueError(f"{where[lost[0]]} does not hold {listing(lost)}, which {INDEX} says is there")
    return stored


def listing(names: list[str]) -> str:
    """Return the first three names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _files(folder: Path, with_code: bool) -> Iterator[Path]:
    """Yield the files that shape ids, prompts or weights, sorted. Raises ValueError for one that is not a file."""
    try:
        paths = list(folder.iterdir())
        for nested in ("chat_templates", "additional_chat_templates"):
            if (folder / nested).is_dir():
                paths += (folder / nested).glob("*.jinja")
        if with_code:
            paths += folder.rglob("*.py")
    except OSError as error:
        raise ValueError(f"the folder cannot be read ({error.strerror})") from error
    for path in sorted(set(paths)):
        is_prose = path.suffix == ".txt" and path.name.lower().startswith(_TEXTS)
        if (path.suffix in _SUFFIXES and not is_prose) or (path.suffix == ".py" and with_code):
            _check_regular(path)
            yield path


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb"):
                return
    except FileNotFoundError:
        raise ValueError(f"{path.name} is a link to a file that does not exist") from None
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from error
    raise ValueError(f"{path.name} is not a regular file")


def _header_end(path: Path) -> int:
    """Return where the header of a safetensors file ends: 8 bytes that give the length of the JSON after them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        end = 8 + int.from_bytes(file.read(8), "little")
    if size < 8 or end > size:
        raise ValueError(f"{path.name} is cut short")
    if end > _LARGEST_HEADER:
        raise ValueError(f"{path.name} is damaged: its header says that it has {end} bytes")
    return end


def _header(path: Path) -> dict[str, Stored]:
    """Return the tensors of one weight file. Raises ValueError when header and size do not agree."""
    _check_regular(path)
    end, size = _header_end(path), path.stat().st_size
    with path.open("rb") as file:
        try:
            header = json.loads(file.read(end)[8:])
        except (ValueError, RecursionError):
            raise ValueError(f"{path.name} is damaged: its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is damaged: its header is not a dictionary")
    header.pop("__metadata__", None)
    last, stored = 0, {}
    for name, entry in header.items():
        try:
            shape, dtype, (start, stop) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
            values = [*shape, start, stop]
            is_sound = all(is_integer(v) and v >= 0 for v in values) and start <= stop
        except (TypeError, KeyError, ValueError):
            is_sound = False
        if not is_sound or not isinstance(dtype, str):
            raise ValueError(f"{path.name} is damaged: its header describes {name} wrongly")
        if dtype in _BYTES and stop - start != math.prod(shape) * _BYTES[dtype]:
            raise ValueError(f"{path.name} is damaged: {name} has {stop - start} bytes, too few or many for its shape")
        if stop > size - end:
            raise ValueError(f"{path.name} is cut short: {name} ends beyond the end of the file")
        last = max(last, stop)
        stored[name] = Stored(path.name, shape, dtype)
    if last < size - end:
        raise ValueError(f"{path.name} is damaged: {size - end - last} bytes follow the last tensor")
    if not stored:
        raise ValueError(f"{path.name} holds no tensors")
    return stored


def _add(digest: _Hash, name: str, content: bytes) -> None:
    # lengths keep two neighbouring files from being read as another pair
    digest.update(f"{name}\0{len(content)}\0".encode() + content)
