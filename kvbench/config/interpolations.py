"""The interpolations that a configuration may hold.

Every configuration is stored with its run, and an experiment file may come from elsewhere. So the environment is read
for folders alone, and never a variable whose name sounds like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

_RESOLVER = re.compile(r"\$\{\s*([^:{}]*?)\s*:\s*([^,}]*)")
_FOLDERS = re.compile(
    r"paths\.|model\.path$|benchmark\.(path|files|haystack)$|hydra\.(run|sweep)\.dir$|hydra\.launcher\."
)
_SECRET = re.compile(r"token|secret|passw|key|credential|auth|cookie|session", re.IGNORECASE)


def check_interpolations(node: object, path: str = "") -> None:
    """Check all texts of a node, interpolations as written.

    Raises:
        ValueError: a resolver other than `oc.select`; in a folder also `oc.env` and `now` are allowed.
    """
    for setting, text in texts(node, path):
        if "${" not in text:
            continue
        resolvers = _RESOLVER.findall(text)
        nested = re.search(r"\$\{[^:}]*\$\{", text)  # an interpolation within a name: its outcome cannot be told
        for resolver, argument in [*resolvers, *([("a nested name", "")] if nested else [])]:
            if resolver == "oc.select" or (resolver in ("oc.env", "now") and _is_allowed(setting, resolver, argument)):
                continue
            raise ValueError(
                f"{setting}={text}: {resolver} may not be used here; only ${{key}} and ${{oc.select:key,default}}, "
                "and in folders ${oc.env:NAME} of a variable that is no secret"
            )


def _is_allowed(setting: str, resolver: str, argument: str) -> bool:
    return bool(_FOLDERS.match(setting)) and not (resolver == "oc.env" and _SECRET.search(argument))


def texts(node: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a node with the setting it is in; keys count as well."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            below = f"{path}.{key}" if path else str(key)
            yield below, str(key)
            yield from texts(value, below)
    elif isinstance(node, Sequence):
        for value in node:
            yield from texts(value, path)
