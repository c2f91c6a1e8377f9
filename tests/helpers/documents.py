"""The commands and overrides that the documents show: found in the text, and checked without running them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kvbench import config
from kvbench.cli.arguments import check_mode, parse
from kvbench.cli.verbs import VERBS
from kvbench.common.paths import conf_dir
from kvbench.config import Config
from kvbench.config.annotations import settings_of
from kvbench.config.combinations import combinations, deferred, fitting
from kvbench.config.compose import composing, inspect
from kvbench.config.compose import parse as parse_overrides
from kvbench.config.groups import options, shipped
from kvbench.run.jobs import check_config
from kvbench.sweep.slurm.settings import checked

_INDENTED = re.compile(r"^(?: {4,}|\t)(?P<line>\S.*)$")
_FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RUN_BY_ANOTHER_TEST = re.compile(r"^<!-- run.*? -->\n```\w+\n.*?^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_CALL = re.compile(r"^(?:.*&& )?(?:\S*/)?(?:python3? -m )?kvbench(?P<words>$|\s.*)")
_OVERRIDE = re.compile(r"[+~]{0,2}(?P<root>\w+)(?:[./][\w@]+)*=(?P<value>.*)", re.DOTALL)
_LEFT_OUT = ("…", "...")
_WORDS = {"FOLDER": "{folder}", "i/n": "1/4"}  # what stands for a value of the reader's
_PLACEHOLDER = re.compile(r"[A-Z]{2,}|\S*…\S*|\.\.\.|", re.DOTALL)
_MOST_JOBS = 12  # of a sweep; a test of conf/ composes every option
ROOTS = frozenset({*Config.__dataclass_fields__, "experiment", "hydra", "launcher", "profile"})


@dataclass(frozen=True)
class Shown:
    """A command, or overrides alone, in a document.

    words: what follows `kvbench`, or the overrides. is_line: the command has a line of its own, so it must be complete.
    """

    file: str
    words: tuple[str, ...]
    is_line: bool

    def __str__(self) -> str:
        return f"{self.file}: {shlex.join(self.words)}"


def commands(file: str, text: str) -> Iterator[Shown]:
    """Yield the `kvbench` commands of a document: those in code blocks, and those in backticks."""
    text = _RUN_BY_ANOTHER_TEST.sub("", text)
    lines = [match["line"] for line in _joined(text).splitlines() if (match := _INDENTED.match(line))]
    lines += [line.strip() for block in _FENCE.findall(text) for line in _joined(block).splitlines()]
    for line in lines:
        if match := _CALL.match(line):
            yield Shown(file, _words(match["words"]), is_line=True)
    for span in _spans(text):
        if match := _CALL.match(span):
            yield Shown(file, _words(match["words"]), is_line=False)


def overrides(file: str, text: str) -> Iterator[Shown]:
    """Yield what stands in backticks and is nothing but overrides, `a|b` as two."""
    for span in _spans(_RUN_BY_ANOTHER_TEST.sub("", text)):
        try:
            words = shlex.split(span)
        except ValueError:  # a quote without its end
            continue
        matches = [_OVERRIDE.fullmatch(word) for word in words]
        if not words or not all(match and match["root"] in ROOTS for match in matches):
            continue
        values = [match["value"] for match in matches if match]
        if any(_PLACEHOLDER.fullmatch(value) and value not in _WORDS for value in values):
            continue
        for value in values[-1].split("|"):
            yield Shown(file, (*words[:-1], words[-1].removesuffix(values[-1]) + value), is_line=False)


def _spans(text: str) -> list[str]:
    """Return what stands in backticks, outside of code blocks, each in one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text))]


def _joined(text: str) -> str:
    return re.sub(r"\\\n\s*", "", text)


def _words(line: str) -> tuple[str, ...]:
    """Return the words of a command without its comment, and without what stands for more words."""
    words = shlex.split(line, comments=True)
    return tuple(word for word in words if word not in _LEFT_OUT and not word.endswith(("=…", "=...")))


def check(shown: Shown, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a command without running it. Raises ValueError for what the command line would refuse.

    Args:
        folder: a folder that FOLDER stands for, fit to be a model's.
    """
    words = [_filled(word, folder) for word in shown.words]
    verb, rest = (words[0], words[1:]) if words and re.fullmatch(r"[A-Za-z][\w-]*", words[0]) else ("run", words)
    if verb not in VERBS:
        raise ValueError(f"kvbench {verb}: no such command")
    if verb == "run":
        check_run(rest)
        return
    parser, given = _parser_of(verb, rest, monkeypatch)
    if not shown.is_line:  # part of a sentence, which need not say all
        known = _flags(parser)
        unknown = [word for word in given if word.startswith("-") and word not in known]
        if unknown:
            raise ValueError(f"kvbench {verb}: no flag {unknown[0]}")
        asked = [word for word in given if "=" in word and not word.startswith("-")]
    else:
        parsed = parser.parse_intermixed_args(given) if verb == "log" else parser.parse_args(given)
        asked = list(getattr(parsed, "overrides", []))
    if asked:
        _check_overrides(verb, asked)


def check_run(words: Sequence[str]) -> None:
    """Compose and check the jobs of `kvbench run`, each listed value once. Raises ValueError."""
    _check_run(tuple(words))


@cache  # documents repeat commands
def _check_run(words: tuple[str, ...]) -> None:
    config.register()
    arguments = parse(words)
    overrides = arguments.overrides
    check_mode("-m" in arguments.flags, overrides)
    if "-m" in arguments.flags:
        overrides = deferred(parse_overrides(overrides))
    composed = inspect(overrides)
    if "partition" in composed.hydra.launcher:
        checked({key: value for key, value in composed.hydra.launcher.items() if key != "_target_"})
    sweeps = composed.hydra.mode == RunMode.MULTIRUN or "-m" in arguments.flags
    params = composed.hydra.sweeper.get("params") or {} if sweeps else {}
    with composing(overrides), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        jobs: list[list[str]] = [list(overrides)]
        if sweeps:
            lines = [*(f"{key}={value}" for key, value in params.items()), *overrides]
            jobs = fitting(list(combinations(parse_overrides(lines, GlobalHydra.instance().config_loader()))))
        configurations = [hydra.compose("config", job, return_hydra_config=True) for job in _covering(jobs)]
    for each in configurations:
        choices = OmegaConf.to_container(each.hydra.runtime.choices)
        task = OmegaConf.masked_copy(each, [str(key) for key in each if key != "hydra"])
        assert isinstance(choices, dict) and isinstance(task, DictConfig)
        check_config(task, {str(key): value for key, value in choices.items()})


def check_override(shown: Shown, folder: Path) -> None:
    """Check overrides with the options that have such settings. Raises ValueError if none takes them."""
    words = [_filled(word, folder) for word in shown.words]
    error: Exception = ValueError(f"{shown}: nothing has such a setting")
    for chosen in _contexts(words, folder):
        try:
            if any(word.startswith(("model=shape/", "profile.")) for word in (*chosen, *words)):
                _check_overrides("profile", [*chosen, *words])
            else:
                check_run(["-m", *chosen, *words])
            return
        except ValueError as refused:
            error = refused
    raise error


def _contexts(words: Sequence[str], folder: Path) -> Iterator[list[str]]:
    """Yield options to choose together with overrides, so that there is something to override."""
    word = words[0].lstrip("+~")
    root, name = re.match(r"(\w+)[./]?(\w*)", word).groups()  # type: ignore[union-attr]
    if word.startswith(f"{root}="):
        yield []
    elif root == "method":
        yield from ([f"method={each}"] for each in options("method") if name in shipped("method", each))
    elif root == "benchmark":
        targets = {each: str(shipped("benchmark", each)["_target_"]) for each in options("benchmark")}
        yield from ([f"benchmark={each}"] for each, target in targets.items() if name in settings_of(target))
    elif root == "model":
        yield from ([f"model={each}"] for each in ("smollm2_135m", "llama31_8b", "shape/llama31_8b"))
        yield ["model=local", f"model.path={folder}"]
    elif root == "launcher":
        yield ["launcher=fused_slurm"]
    elif root == "logger":
        yield [f"logger={name}"]
    else:
        yield []


def _covering(jobs: Sequence[list[str]]) -> Iterator[list[str]]:
    """Yield jobs of a sweep until each listed value has been in one, or many values of a pattern such as `glob(*)`."""
    seen: set[str] = set()
    for _ in range(_MOST_JOBS):
        job = max(jobs, key=lambda each: len(set(each) - seen))
        if seen.issuperset(job) and seen:
            return
        seen.update(job)
        yield job


def _check_overrides(verb: str, given: Sequence[str]) -> None:
    """Check the overrides of a command that is no run. Raises ValueError."""
    if verb == "profile":
        from kvbench.profile.compose import groups

        groups(given)
        return
    if verb == "heads":
        from kvbench.run.heads.command import _composed

        _composed(given)
        return
    if verb == "inspect":
        from kvbench.profile.inspect_command import settings

        given = settings(given).others
    check_run([word for word in given if not word.startswith("show=")])


class _Asked(BaseException):
    """A command that was about to parse its arguments."""

    def __init__(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        self.parser, self.words = parser, list(words)


def _parser_of(
    verb: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of a command, and the words that it would parse."""

    def asked(self: argparse.ArgumentParser, args: Sequence[str], *_: Any) -> None:
        raise _Asked(self, args)

    module, _, function = VERBS[verb].target.partition(":")
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", asked)
        patched.setattr(argparse.ArgumentParser, "parse_intermixed_args", asked)
        try:
            getattr(import_module(module), function)(list(words))
        except _Asked as stop:
            return stop.parser, stop.words
    raise AssertionError(f"kvbench {verb} does not parse its arguments")


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    """Return the flags of a parser and of its sub-commands."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags = flags.union(*(_flags(sub) for sub in action.choices.values()))
    return flags


def _filled(word: str, folder: Path) -> str:
    for shown, meant in _WORDS.items():
        word = re.sub(rf"(?<![\w/]){re.escape(shown)}(/[\w./-]+|(?!\w))", meant.format(folder=folder), word)
    return word
