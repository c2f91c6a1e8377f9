"""What a run is (its hash) and what must never be written down (its secrets)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(r"(^|[._-])(token|secret|passwd|password|credentials?|auth|(api|access|private|secret)[_-]?key)$")
_ASSIGNED = re.compile(r"([\w.-]+)(=|:\s?)([^\s,\"'\]}{\[=:]+)")
_NOT_SECRET = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|stop|special|image)_token$")


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of `identity` as canonical JSON: sorted keys, no spaces, floats by `repr`.

    1 and 1.0 differ; a tuple counts as a list. Raises ValueError naming the entry that JSON cannot hold.
    """
    text = json.dumps(plain(identity, "identity"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any, where: str) -> Any:
    """Return a copy of `value` in plain JSON types; raises ValueError saying where that cannot be done."""
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
    return _ASSIGNED.sub(lambda found: found[0] if not _is_secret(found[1]) else found[1] + found[2] + "...", text)


def _is_secret(key: Any) -> bool:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key)).lower()
    return bool(_SECRET.search(snake)) and not _NOT_SECRET.search(snake)


def _is_secret_override(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return bool(equals) and _is_secret(key.strip())
