"""The settings that the command of a published row gives: how prompts are cut, wrapped and ended, and code is scored.

A table lists what its source states. The rest of a protocol follows from the benchmark with the command's overrides: a
run that changed it, such as with benchmark.wrapper or benchmark.max_length, has another protocol. This holds for every
table, so that none has to list it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from kvbench.benchmarks.base import ModelFacts, benchmarks_of, build
from kvbench.config.groups import options, shipped
from kvbench.report.parity.references import Entry
from kvbench.store import Manifest

_FREE = ("seed", "generator")  # other samples of the same kind, as most sources have them
_DATE = "date_string"  # of a chat template; no published protocol has one

Place = tuple[str, str]  # the suite and the column; "" and the benchmark where it stands alone


def implied(entry: Entry, manifest: Manifest) -> dict[str, tuple[object, ...]]:
    """Return path → accepted values of a run, as far as the table does not list the path; {} without a command.

    A length "by the model's limit" is not among them: a manifest does not say which limit that was.

    Raises:
        ValueError: the command names a benchmark or a setting that does not exist.
    """
    place = manifest["part"]
    key = (place["suite"], place["name"]) if place else ("", manifest["label"]["benchmark"])
    if entry.command is None or key not in (parts := _parts(entry.command, str(entry.settings["model"][0]))):
        return {}
    part = parts[key]
    rendering = asdict(part.rendering)
    if rendering["max_length"] == "auto":
        del rendering["max_length"]
    expected: dict[str, object] = {"chat_kwargs": _chat_kwargs(entry.command, manifest)}
    if part.column is not None:  # the parts of a suite may end their answers in different ways
        expected["dataset.stops"] = rendering.pop("stops")
    expected |= {f"rendering.{name}": value for name, value in rendering.items()}
    own: dict[str, object] = getattr(part, "settings", dict)()  # benchmarks from elsewhere may lack it
    expected |= {name: value for name, value in own.items() if name not in _FREE}
    accepted: dict[str, tuple[object, ...]] = {f"protocol.{name}": (value,) for name, value in expected.items()}
    accepted["protocol.chat_template"] = ("auto", "always")
    return {path: values for path, values in accepted.items() if path not in entry.settings}


@cache
def _parts(command: str, hub: str) -> Mapping[Place, Any]:
    """Return the benchmarks that a command runs on the model `hub`, by their places. Reads no data."""
    words = _words(command)
    changes = [f"{key}={value}" for key, value in words.items() if key.startswith("benchmark.")]
    try:
        node: Any = {"benchmark": shipped("benchmark", words.get("benchmark", ""))}
        node = OmegaConf.merge(node, OmegaConf.from_dotlist(changes))
        parts = list(benchmarks_of(build(node.benchmark), ModelFacts(words.get("model", ""), hub)))
    except Exception as error:  # a command of a user's own table: any error is possible
        raise ValueError(f"command: {command}: {' '.join(str(error).split())}") from None
    return {(part.column.suite, part.column.name) if part.column else ("", part.name): part for part in parts}


def _chat_kwargs(command: str, manifest: Manifest) -> dict[str, object]:
    """Return what the model's file hands to the chat template, with the run's own date, if any."""
    name = _words(command).get("model", "")
    known: Mapping[str, object] = shipped("model", name).get("chat_kwargs") or {} if name in options("model") else {}
    ours = manifest["identity"]["protocol"].get("chat_kwargs")
    date = {_DATE: ours[_DATE]} if isinstance(ours, Mapping) and _DATE in ours else {}
    return {key: value for key, value in known.items() if key != _DATE} | date


def _words(command: str) -> dict[str, str]:
    """Return the overrides of a command."""
    pairs = (word.partition("=") for word in shlex.split(command))
    return {key: value for key, _, value in pairs if value}


def model_word(command: str | None) -> str | None:
    """Return the name of the model in a command, such as llama31_8b."""
    return None if command is None else _words(command).get("model")
