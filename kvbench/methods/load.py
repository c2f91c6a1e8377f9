"""Methods built from their YAML files with the user's dials."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from kvbench.common.text import one_line
from kvbench.methods.base import NEEDS, Heads, Layers, Merge, Part, Score, Select
from kvbench.methods.decoding import DecodePolicy, Decoding, Feed
from kvbench.methods.dials import EVICTING, FIXED, PARTS, as_plain_number, check_keys, check_types, split_dials
from kvbench.methods.eviction import Eviction
from kvbench.methods.fields import InvalidField
from kvbench.methods.files import DialFile, file_dials, read_file
from kvbench.methods.idle import check_idle, check_phase, check_use
from kvbench.methods.looking import Look
from kvbench.methods.method import Method
from kvbench.methods.probing import Probe
from kvbench.methods.read import read_method
from kvbench.methods.storage import Store

_PROTOCOLS: dict[str, type] = dict(
    zip(PARTS, (Score, Layers, Heads, Select, Probe, Merge, Feed, Store, DecodePolicy, Look), strict=True)
)
_POLICY_DIALS = ("phase", "interval", "buffer", "budget")  # of every decode policy; its own class does not know them
_READ = f"{read_file.__module__}.{read_file.__name__}"
_DIAL = re.compile(r"\$\{(\.+)(\w+)\}")


def load(folder: Path, name: str, model: Mapping[str, Any] | None = None, /, **overrides: Any) -> Method:
    """Compose the method `name` with dials set to `overrides`; `kvbench.load_method` is this on our conf/.

    Args:
        folder: where the YAML is; what is not there is looked for in conf/method.
        model: the name and the hints of a model, which defaults of dials may refer to: {"name": ..., "hints": {...}}.

    Raises:
        ValueError: unknown method or dial, wrong type, impossible value.
    """
    config = read_method(folder, name)
    defaults = split_dials(config)
    check_keys(name, overrides, defaults)
    overrides = {key: as_plain_number(value) for key, value in overrides.items()}
    check_types(overrides, defaults)  # before they are merged: a config holds plain types alone
    around = OmegaConf.create({"model": dict(model or {}), "method": config})  # as a composed configuration has it
    return build(OmegaConf.merge(around.method, overrides), defaults)


def build(config: Any, defaults: Mapping[str, Any]) -> Method:
    """Build a method from its composed config; `defaults` are the dials as in the YAML.

    Raises:
        ValueError: one line naming the dial to change, or what is wrong with the parts of the YAML.
    """
    dials = split_dials(config)
    check_types(dials, defaults)
    files = file_dials(dials, defaults)
    nodes = {dial: {"_target_": _READ, "dial": dial, "value": file.path} for dial, file in files.items()}
    dial_of = _dials_by_field(config)
    copied = _with_values(config, nodes)  # hydra resolves in place a part that another part interpolates
    parts = {part: _build_part(part, copied[part], dial_of) for part in PARTS if config.get(part) is not None}
    evicting = {part: parts.pop(part) for part in EVICTING if part in parts}
    try:
        _check_combination(config.name, evicting, parts)
        check_use(config, dials)
        eviction = _eviction(config.name, evicting)
    except ValueError as error:
        raise ValueError(f"{error}{_alone(config.name, str(error))}") from None
    method = Method(config.name, dials | files, eviction, **parts, dial_of=dial_of)
    check_phase(config, dials, defaults, method)
    check_idle(config, dials, defaults, method)
    return method


def _eviction(name: str, evicting: Mapping[str, Any]) -> Eviction | None:
    """Return the parts that choose tokens of the prompt. Raises ValueError if they do not go together."""
    try:
        return Eviction(**evicting) if evicting else None
    except ValueError as error:
        raise ValueError(f"method={name}: {error}") from None


def _alone(name: str, problem: str) -> str:
    """Return what to write in the place of two methods whose parts do not go together; a user may know no parts."""
    names = name.split("+")
    if len(names) != 2 or "write method=" in problem or not problem.startswith("method="):
        return ""
    return f", or write method={names[0]} or method={names[1]}"


def _check_combination(name: str, evicting: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raise ValueError for parts that have no meaning together."""
    if evicting and "select" not in evicting:
        raise ValueError(f"method={name}: a method that drops tokens also needs select in its YAML")
    if "merge" in parts and not evicting:
        raise ValueError(f"method={name}: merge needs score, layers, heads and select")
    score, heads = evicting.get("score"), evicting.get("heads")
    if isinstance(heads, Heads) and isinstance(score, Score) and heads.compares_heads and score.is_shared:
        raise ValueError(
            f"method={name}: heads={type(heads).__name__} compares the scores of heads, and those of "
            f"{type(score).__name__} are the same for all heads of a layer; leave one of them out"
        )
    layers = evicting.get("layers")
    if isinstance(layers, Layers) and isinstance(score, Score) and layers.needs_statistics and score.is_positional:
        raise ValueError(
            f"method={name}: layers={type(layers).__name__} compares the scores of layers, and those of "
            f"{type(score).__name__} are the same for all layers; leave one of them out"
        )
    reads_probe = any(
        "probed" in part.needs for part in (*evicting.values(), *parts.values()) if isinstance(part, Part)
    )
    if reads_probe != ("probe" in parts):
        without = "a part reads what a probe finds; add probe"
        unread = "no part reads what probe finds; leave out probe"
        raise ValueError(f"method={name}: {unread if 'probe' in parts else without}")
    others = [part for part in PARTS if part in {*evicting, *parts} - {"look"}]
    if "look" in parts and others:
        raise ValueError(f"method={name}: look reads part of a cache that keeps every token; leave out {others[0]}")
    decoding = parts.get("decode")
    if "store" in parts and decoding is not None and decoding.policy.merges and decoding.phase != "prefill":
        raise ValueError(
            f"method={name}: its decode policy adds values of tokens that leave to others, and a store holds them "
            "encoded; leave out store, or set method.phase=prefill"
        )
    if "store" in parts and decoding is not None and decoding.policy.turns_all and decoding.phase != "prefill":
        raise ValueError(
            f"method={name}: its decode policy turns all keys, and a store holds them encoded; leave out store, or set "
            "method.phase=prefill"
        )
    _check_decode(name, evicting, decoding)
    _check_feed(name, evicting, parts)


def _check_decode(name: str, evicting: Mapping[str, Any], decoding: Decoding | None) -> None:
    """Raise ValueError for a decode policy that needs other parts, or a phase in which the budget has no effect."""
    if decoding is None:
        return
    if decoding.policy.follows_plan:
        select = evicting.get("select")
        if not (isinstance(select, Select) and select.policies):
            raise ValueError(
                f"method={name}: its decode policy {type(decoding.policy).__name__} follows what a selection decides "
                f"for each head, and {type(select).__name__} decides no such thing; leave one out"
            )
        return
    adds = decoding.policy.adds_to_prompt
    if not evicting:
        if not adds:
            last = name.rpartition("+")[2]
            keeping = f"; to keep the whole prompt until then, write method={last} method.phase=decode"
            raise ValueError(
                f"method={name}: decode needs score, layers, heads and select, which share its budget out"
                + (keeping if "+" in name else "")
            )
        if "decode" not in decoding.policy.phases:
            raise ValueError(f"method={name}: its decode policy follows from what the prefill kept, and all would stay")
        if decoding.phase != "both":
            raise ValueError(f"method.phase={decoding.phase}: {name} keeps the whole prompt in any case; choose both")
    elif adds and decoding.phase == "decode":
        last = name.rpartition("+")[2]
        raise ValueError(
            f"method.phase=decode: {name} would keep the whole prompt whatever its budget; write method=fullkv+{last}, "
            "which takes no budget"
        )


def _check_feed(name: str, evicting: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raise ValueError for parts that have no meaning with a feed, or need one."""
    decoding = parts.get("decode")
    if "feed" not in parts:
        if decoding is not None and decoding.policy.turns and not decoding.policy.turns_all:
            raise ValueError(f"method={name}: its decode policy turns keys, which needs a feed")
        return
    if decoding is None:
        raise ValueError(f"method={name}: feed needs decode, which evicts after each chunk")
    for part in ("merge", "probe", "store"):
        if part in parts:
            raise ValueError(f"method={name}: {part} cannot be combined with feed: there is no prefill before decoding")
    if decoding.phase != "both":
        raise ValueError(f"method.phase={decoding.phase}: {name} feeds its prompt, which has no phases; choose both")
    if decoding.policy.adds_to_prompt:
        raise ValueError(f"method={name}: its decode policy evicts generated tokens alone; leave out feed")
    if type(decoding.policy).for_answer is not DecodePolicy.for_answer:  # the rows of several questions begin as copies
        raise ValueError(f"method={name}: its decode policy depends on the length of the answer; leave out feed")
    heads = evicting.get("heads")
    if heads is None or not heads.is_even or evicting["layers"].needs_statistics:
        raise ValueError(f"method={name}: budgets from scores cannot be combined with feed: a fed prompt has no scores")


def method_identity(config: DictConfig, method: Method) -> dict[str, Any]:
    """Return a composed method node as it enters the identity of a run.

    Where something lies does not change what it computes: of our own parts the class name counts alone (a class from
    elsewhere keeps its full path), of a file that a dial names the content.
    """
    digests = {dial: value.digest for dial, value in method.dials.items() if isinstance(value, DialFile)}
    plain = OmegaConf.to_container(_with_values(config, digests), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): _without_modules(value) for key, value in plain.items() if key == "name" or key not in FIXED}


def _without_modules(node: Any) -> Any:
    """Return a plain node in which our own classes have no module in their names, at any depth."""
    if isinstance(node, list):
        return [_without_modules(value) for value in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _without_modules(value) for key, value in node.items()}
    target = str(plain.get("_target_", ""))
    return plain | {"_target_": target.rpartition(".")[2]} if target.startswith("kvbench.methods.") else plain


def _with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a copy of a method's config with other values of some dials. It can still refer to what is around it."""
    copied = copy.deepcopy(config)
    OmegaConf.set_readonly(copied, False)
    OmegaConf.set_struct(copied, False)
    for dial, value in values.items():
        copied[dial] = value
    return copied


def _dials_by_field(config: DictConfig) -> dict[tuple[str, str], str]:
    """Return {(part, field): dial} for the fields that a YAML fills with a dial, as in `window: ${..window}`.

    The fields of parts within a part count as well; a field of the part itself comes first.
    """
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    dials: dict[tuple[str, str], str] = {}
    for part in PARTS:
        level, dots = [plain.get(part) or {}], ".."
        while level:
            items = [(str(field), value) for node in level for field, value in node.items()]
            for field, value in items:
                if isinstance(value, str) and (match := _DIAL.fullmatch(value)) and match[1] == dots:
                    dials.setdefault((part, field), match[2])
            level, dots = [value for _, value in items if isinstance(value, dict)], dots + "."
    return dials


def _build_part(part: str, node: DictConfig, dial_of: Mapping[tuple[str, str], str]) -> Any:
    """Instantiate a part and check that it keeps its contract."""
    try:
        built = _decoding(node) if part == "decode" else hydra.utils.instantiate(node)
    except (InstantiationException, InvalidField) as error:
        cause = error if isinstance(error, InvalidField) else error.__cause__
        if isinstance(cause, InvalidField):
            raise ValueError(cause.text(lambda field: dial_of.get((part, field), f"{part}.{field}"))) from None
        raise ValueError(f"method.{part}: {one_line(str(cause or error)) or type(cause).__name__}") from cause
    target, protocol = node.get("_target_"), _PROTOCOLS[part]
    own = built.policy if isinstance(built, Decoding) else built
    if not isinstance(own, protocol):
        raise ValueError(f"method.{part}={target}: must inherit from {protocol.__module__}.{protocol.__name__}")
    unknown = sorted(own.needs - NEEDS) if isinstance(own, Part) else []
    if unknown:
        raise ValueError(f"method.{part}={target}: needs {unknown[0]}, which is none of {', '.join(sorted(NEEDS))}")
    try:
        hash(built)
    except TypeError:
        raise ValueError(
            f"method.{part}={target}: must be hashable; decorate it with @dataclass(frozen=True)"
        ) from None
    hidden = set(vars(own)) - {f.name for f in fields(own)} if is_dataclass(own) else set()
    if hidden:  # two parts that differ in it would count as equal and share their results
        names = ", ".join(sorted(hidden))
        raise ValueError(f"method.{part}={target}: {names} must be a field; decorate it with @dataclass(frozen=True)")
    return built


def _decoding(node: DictConfig) -> Any:
    """Return a decode policy with the dials that every policy has, which stand next to its own in the YAML."""
    dials = {key: node[key] for key in _POLICY_DIALS if key in node}
    policy = hydra.utils.instantiate({key: node[key] for key in node if key not in _POLICY_DIALS})
    return Decoding(policy, **dials) if isinstance(policy, DecodePolicy) else policy
