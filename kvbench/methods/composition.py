"""A method as plain data: its dials and parts with their interpolations as written, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvbench.methods.dials import PARTS

STORED = frozenset({"store", "decode", "look", "feed"})
"""Parts that act on stored tokens, whichever tokens of the prompt these are."""
_REFERENCE = re.compile(r"\$\{\s*(\.+)(\w+)")


@dataclass(frozen=True)
class Composition:
    """A method as plain data, with interpolations as they are written.

    Attributes:
        name: the name of the method; of a combination, the names with a + between them.
        summary: the comment at the top of the file.
        about: method → where it comes from, see `kvbench.methods.dials.ABOUT`; a combination has an entry per method.
        dials: name → default.
        parts: part → node with its `_target_`.
        origin: part → the method whose file writes it.
        own: parts that the method brings into a combination: those in which it differs from the method at the end of
            its chain of `use`. Without `use`, what acts on stored tokens (`STORED`), or else all parts.
        own_dials: dials, likewise.
        added, added_dials: the same for a method that uses this one; empty without `use`.
        gives: field → node, for the store of another method that names the field in `takes`.
        takes: fields of the store that another method may give.
        notes: dial → the default as it is written and the comment next to it.
        test: dials and budget with which the tests run the method; the tests alone read it.
    """

    name: str
    summary: str = ""
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dials: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    own_dials: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    added_dials: frozenset[str] = frozenset()
    gives: Mapping[str, Any] = field(default_factory=dict)
    takes: Sequence[str] = ()
    notes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> dict[str, Any]:
        """The method as one YAML node without inheritance: name, dials, then parts in the order of `PARTS`."""
        return {"name": self.name, **self.dials, **{part: self.parts[part] for part in PARTS if part in self.parts}}


def references(node: Any, depth: int = 0) -> Iterator[str]:
    """Yield the names of the dials and parts that a method's node interpolates, such as `window` for `${..window}`.

    Args:
        depth: levels between the method and the node; a dot is a level.
    """
    if isinstance(node, str):
        yield from (name for dots, name in _REFERENCE.findall(node) if len(dots) == depth)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from references(value, depth + 1)
    elif isinstance(node, list):
        for value in node:
            yield from references(value, depth + 1)


def reached(dials: Mapping[str, Any], parts: Mapping[str, Any]) -> set[str]:
    """Return the dials that parts read, directly or by way of other dials."""
    reached: set[str] = set()
    waiting = [name for part in parts.values() for name in references(part, depth=1)]
    while waiting:
        name = waiting.pop()
        if name in dials and name not in reached:
            reached.add(name)
            waiting += references(dials[name], depth=1)
    return reached


def filled(node: Any, dials: Mapping[str, Any], depth: int = 1) -> Any:
    """Return a node with the defaults of the dials in the place of their names."""
    if isinstance(node, str):
        names = [name for name in references(node, depth) if name in dials]
        return (node, [filled(dials[name], dials) for name in names]) if names else node
    if isinstance(node, Mapping):
        return {key: filled(value, dials, depth + 1) for key, value in node.items()}
    return [filled(value, dials, depth + 1) for value in node] if isinstance(node, list) else node


def renamed(node: Any, names: Mapping[str, str], depth: int) -> Any:
    """Return a node in which the dials that it interpolates have other names."""
    if isinstance(node, str):
        return _REFERENCE.sub(
            lambda match: f"${{{match[1]}{names.get(match[2], match[2])}" if len(match[1]) == depth else match[0],
            node,
        )
    if isinstance(node, Mapping):
        return {key: renamed(value, names, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [renamed(value, names, depth + 1) for value in node]
    return node
