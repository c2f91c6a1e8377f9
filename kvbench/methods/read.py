"""Methods as their YAML files describe them: one file, a file that inherits, or several files.

    use: snapkv      the dials and parts of snapkv, except those that this file writes itself
    a+b              a combination, see `kvbench.methods.combination`

Nothing here needs torch: the command line, its help and the list of methods read methods through this file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.common.text import one_line
from kvbench.methods.combination import combination
from kvbench.methods.composition import STORED, Composition, reached
from kvbench.methods.dials import ABOUT, FIXED, PARTS

_NO_DIALS = ("use", *FIXED, *PARTS)
_NOTED = re.compile(r"(\w+): *(.*?)(?: +# *(.*))?")


def method_files(folder: Path) -> dict[str, Path]:
    """Return {name: YAML} of the methods in a folder."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def compose(folder: Path, name: str) -> Composition:
    """Return the method `name` of a folder, or a combination such as "ada_snapkv+kivi".

    Names that the folder lacks are those of conf/method, so that a file elsewhere may use the methods that are there.

    Raises:
        ValueError: no such method, files that use each other in a circle, or a combination without meaning.
    """
    files = method_files(conf_dir() / "method") | method_files(folder)
    return _composed(name, tuple((path, path.stat().st_mtime_ns) for path in files.values()))


def read_method(folder: Path, name: str) -> DictConfig:
    """Return a method as one configuration without inheritance. Raises ValueError as `compose` does."""
    return OmegaConf.create(compose(folder, name).node)


@cache
def _composed(name: str, stamps: tuple[tuple[Path, int], ...]) -> Composition:
    """Compose a method, once per process as long as all files stay as they are: a sweep asks hundreds of times."""
    files = {path.stem: path for path, _ in stamps}
    return _read(name, files, ())


def _read(name: str, files: Mapping[str, Path], above: Sequence[str]) -> Composition:
    """Return a method or a combination; `above` are the methods that use it."""
    if "+" in name:
        return combination(name, lambda factor: _read_file(factor, files, above, of=name))
    return _read_file(name, files, above)


def _read_file(name: str, files: Mapping[str, Path], above: Sequence[str], of: str | None = None) -> Composition:
    """Return the method of one file with all that it inherits; `of` is the combination that names it."""
    chain = " → ".join((*above, name))
    if name in above:
        raise ValueError(f"method={above[0]}: its YAML uses itself: use: {chain}")
    if name not in files:
        where = f"{of or name}: " if not above else f"{above[0]}: use: {chain}: "
        what = f" {name!r}" if of or above else ""
        raise ValueError(f"method={where}no such method{what}.{did_you_mean(name, files)}")
    node, text = _content(name, files[name])
    base = _read(node["use"], files, (*above, name)) if "use" in node else None
    return _extended(base, name, node, text)


def _content(name: str, path: Path) -> tuple[dict[str, Any], str]:
    """Return the settings in a method's file and its text. Raises ValueError for what is no method."""
    try:
        text = path.read_text(encoding="utf-8")
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # YAML's own errors have several lines
        raise ValueError(f"method={name}: {path.name} cannot be read: {one_line(str(error))}") from None
    if not isinstance(content, dict):
        raise ValueError(f"method={name}: {path.name} must hold settings, key: value")
    node = {str(key): value for key, value in content.items()}
    if node.get("name") != name:
        raise ValueError(f"method.name={node.get('name')}: must be {name}, the name of {path.name}")
    if "defaults" in node:
        raise ValueError(f"method={name}: {path.name} cannot have a defaults list; inherit with use: NAME")
    if "use" in node and not (isinstance(node["use"], str) and node["use"]):
        raise ValueError(f"method={name}: use: {node['use']} in {path.name} must be the name of a method")
    for part in PARTS:
        if part in node and not isinstance(node[part], dict | None):
            raise ValueError(f"method.{part}={node[part]}: must be a part, with the class as _target_")
    if not isinstance(node.get("test"), dict | None):
        raise ValueError(f"method={name}: test: in {path.name} must hold dials and a budget")
    if not isinstance(node.get("gives"), dict | None) or not isinstance(node.get("takes"), list | None):
        raise ValueError(f"method={name}: {path.name} must have gives: {{FIELD: PART}} and takes: [FIELD]")
    _check_about(name, path, node.get("about"))
    return node, text


def _check_about(name: str, path: Path, about: Any) -> None:
    """Raise ValueError unless `about` holds texts under known names, or is missing."""
    if not isinstance(about, dict | None):
        raise ValueError(f"method={name}: about: in {path.name} must hold {', '.join(ABOUT)}")
    for key, value in (about or {}).items():
        if key not in ABOUT:
            raise ValueError(
                f"method={name}: about: in {path.name} has no entry {key!r}, only {', '.join(ABOUT)}."
                f"{did_you_mean(str(key), ABOUT)}"
            )
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"method={name}: about: {key}: {value} in {path.name} must be text")


def _extended(base: Composition | None, name: str, node: Mapping[str, Any], text: str) -> Composition:
    """Return a method that has what its file writes, and of its base the rest. A part of null takes that part away."""
    is_root, base = base is None, base or Composition(name)
    written = {part: node[part] for part in PARTS if part in node}
    parts = {part: value for part, value in {**base.parts, **written}.items() if value is not None}
    own_dials = {key: value for key, value in node.items() if key not in _NO_DIALS}
    inherited = {key: value for key, value in base.dials.items() if key not in own_dials}
    dials = {key: own_dials.get(key, value) for key, value in base.dials.items()} | own_dials
    read = reached(dials, parts)
    own = frozenset(part for part in (*written, *base.added) if part in parts)
    own = own & STORED if is_root and own & STORED else own
    return Composition(
        name,
        summary=_head(text),
        about={name: node["about"]} if node.get("about") else {},
        dials={key: value for key, value in dials.items() if key not in inherited or key in read},
        parts=parts,
        origin={part: name if part in written else base.origin[part] for part in parts},
        own=own,
        own_dials=frozenset(own_dials) | base.added_dials,
        added=frozenset() if is_root else own,
        added_dials=frozenset() if is_root else frozenset(own_dials) | base.added_dials,
        gives=node.get("gives") or ({} if "store" in written else base.gives),
        takes=node.get("takes") or (() if "store" in written else base.takes),
        notes={**base.notes, **_notes(text, own_dials)},
        test=node.get("test") or base.test,
    )


def _head(text: str) -> str:
    """Return the comment at the top of a YAML file."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def _notes(text: str, dials: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return dial → its default as written and the comment next to it."""
    matches = [match for line in text.splitlines() if (match := _NOTED.fullmatch(line)) and match[1] in dials]
    return {match[1]: (match[2], match[3] or "") for match in matches}
