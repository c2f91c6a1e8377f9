"""The identity of a run (its hash), and what must never be written down: secrets, and who and where the user is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(
    r"(^|[._-])((secret|passwd|password|passphrase|pwd|credential|bearer|cookie|authorization"
    r"|(api|access|private|secret|auth)[_-]?key)s?($|[._-])|(token|auth)$)"
)
_NOT_SECRET = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|stop|special|image)_token$")
_NAME = re.compile(r"([\w.-]+)(?:=|:\s?)")
_VALUE = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s,"'\]}]+""")
_PATH = re.compile(r"(?<![\w./:~-])(?:~|/[^\s/'\":,;]+)(?:/[^\s/'\":,;]+)+")  # of two parts at least


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of `identity` as canonical JSON: sorted keys, no spaces, floats by `repr`.

    1 and 1.0 differ; a tuple counts as a list. Secrets do not count: they are not stored. Raises ValueError that names
    the entry which JSON cannot hold.
    """
    content = scrub(plain(identity, "identity"))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any, where: str) -> Any:
    """Return a copy of `value` in plain JSON types; raises ValueError that says where that cannot be done."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a JSON number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} is not a string")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    raise ValueError(f"{where}: {type(value).__name__} is not a JSON type")


def scrub(value: Any) -> Any:
    """Return a copy of a plain configuration without its secrets.

    Dropped: filled keys that look like tokens, passwords or API keys, and list entries such as
    "logger.api_key=...". A user name and password inside a URL are cut out of the text.
    """
    if isinstance(value, Mapping):
        return {key: scrub(item) for key, item in value.items() if not (item and _is_secret(key))}
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value if not (isinstance(item, str) and _is_secret_override(item))]
    if isinstance(value, str):
        return re.sub(r"://[^/@\s]+@", "://", value)
    return value


def scrub_text(text: str) -> str:
    """Return `text` without the values of `NAME=value` and `NAME: value` whose name looks like a secret's."""
    pieces, end = [], 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end())
        if value and name.start() >= end and _is_secret(name[1]):
            pieces += [text[end : name.end()], "..."]
            end = value.end()
    return "".join(pieces) + text[end:]


def without_places(value: Any) -> Any:
    """Return a copy of a plain configuration whose absolute paths are cut to their last part: ".../my-model".

    A run folder is for others to read. They need no path of this machine, which often holds a user's name.
    """
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")) and value.count("/") > 1 and "\n" not in value:
        return f".../{os.path.basename(value.rstrip('/'))}"
    return value


def without_paths(text: str) -> str:
    """Return a text, such as an error, whose absolute paths are cut to their last part: ".../samples.jsonl"."""
    return _PATH.sub(lambda match: f".../{match[0].rpartition('/')[2]}", text)


def _is_secret(key: Any) -> bool:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key)).lower()
    return bool(_SECRET.search(snake)) and not _NOT_SECRET.search(snake)


def _is_secret_override(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return bool(equals) and _is_secret(key.strip())
