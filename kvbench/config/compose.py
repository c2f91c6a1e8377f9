"""Composing a configuration from overrides, with every mistake in it as one line.

Nothing that the configuration names is imported or called here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvbench.common.paths import conf_dir
from kvbench.common.suggest import did_you_mean
from kvbench.config.checks import check
from kvbench.config.hydra_node import check_hydra, check_override, check_recorded
from kvbench.config.messages import one_line, plain_mistakes
from kvbench.config.schema import NODES, Config, register

_LONGEST = 10_000  # characters of an override; longer ones are files by mistake, and take minutes to parse
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_OTHERS = ("experiment", "hydra", "launcher", "local")  # what else the command line of `kvbench run` may name


def inspect(overrides: Sequence[str]) -> DictConfig:
    """Return what a command composes, lists of values left out, after checking what it tells Hydra itself.

    Raises:
        ValueError: one line naming the override to change.
    """
    for folder in (os.getcwd(), str(conf_dir())):
        if "${" in folder:
            raise ValueError(f"{folder}: a folder with ${{ in its name cannot be used, Hydra reads it as a reference")
    with composing(overrides), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed = parse(overrides, loader)
        for override in parsed:
            check_override(override)
        composed = loader.load_configuration(
            "config", list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        check_hydra(composed, loader, {override.key_or_group for override in parsed})
        check_recorded(composed, [override.input_line or "" for override in parsed])
        if "${" in str(composed.paths.outputs):
            raise ValueError(f"paths.outputs={composed.paths.outputs}: a folder with ${{ in its name cannot be used")
        return composed


def compose_one(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a command that takes one value of each setting, unchecked.

    Raises:
        ValueError: one line naming the override to change.
    """
    return _compose_one(overrides)[0]


def one_run(argv: Sequence[str], command: str, reads: Collection[str], fixed: Sequence[str] = ()) -> DictConfig:
    """Return the checked configuration of a command that needs some of the settings of a run.

    Args:
        command: the name of the command, for messages.
        reads: the settings that have an effect, as `check_read` takes them.
        fixed: overrides of the command itself.

    Raises:
        ValueError: one line naming the override to change.
    """
    register()
    check_read(parse(argv), command, reads)
    overrides = [*argv, *fixed]
    cfg, choices = _compose_one(overrides)
    with plain_mistakes(overrides):
        check(cfg, choices)
    return cfg


def check_read(overrides: Sequence[Override], command: str, reads: Collection[str]) -> None:
    """Refuse overrides that would have no effect on a command.

    Args:
        command: the name of the command, for messages.
        reads: the settings of `kvbench run` that the command reads, each with all below it: "model", "engine.cache".

    Raises:
        ValueError: one line naming the override to change.
    """
    for override in overrides:
        name = override.key_or_group.replace("/", ".")
        if override.package is None and any(f"{name}.".startswith(f"{setting}.") for setting in reads):
            continue
        if not _exists(name):
            raise ValueError(f"{override.input_line}: no such setting.{did_you_mean(name, reads)}")
        raise ValueError(f"{override.input_line}: kvbench {command} does not read it; leave it out")


def compose_job(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Return the configuration of one run without Hydra's own node, and what it chose: group → option.

    Hydra must be initialised. `composing` turns what goes wrong here into one line.
    """
    composed = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    cfg = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    assert isinstance(choices, dict) and isinstance(cfg, DictConfig)
    return cfg, {str(key): value for key, value in choices.items()}


def _compose_one(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    for override in parse(overrides):
        if override.is_sweep_override():
            raise ValueError(f"{override.input_line}: takes one value; lists are for kvbench -m")
    with composing(overrides), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose_job(overrides)


def _exists(setting: str) -> bool:
    """Return True if `kvbench run` has a setting of this name; what is below a group is not looked at."""
    top, _, below = setting.partition(".")
    if top in NODES and below:
        return below in [field.name for field in fields(NODES[top])]
    return top in Config.__dataclass_fields__ or top in _OTHERS


def parse(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return the overrides as Hydra reads them.

    Raises:
        ValueError: one of them cannot be read; the message shows how to quote it.
    """
    parser = OverridesParser.create(config_loader=loader)
    read = []
    for text in overrides:
        if len(text) > _LONGEST:
            raise ValueError(f"{text[:40]}…: an override of {len(text)} characters; the longest is {_LONGEST}")
        if _CONTROL.search(text):
            raise ValueError(f"{text!r}: an override may not hold control characters")
        try:
            read += parser.parse_overrides([text])
        except (HydraException, RecursionError):
            raise ValueError(_unreadable(text, parser)) from None
        key = read[-1].key_or_group
        if not re.fullmatch(r"[\w./@:-]+", key) or ".." in key or key.startswith((".", "/")):
            raise ValueError(f"{text}: {key!r} is no name of a setting")
    return read


@contextmanager
def composing(overrides: Sequence[str]) -> Iterator[None]:
    """Turn whatever goes wrong while composing into a ValueError that names the overrides."""
    try:
        yield
    except OmegaConfBaseException as error:  # some of them are ValueErrors, of several lines
        raise ValueError(one_line(error, overrides)) from None
    except ValueError:
        raise
    except RecursionError:
        raise ValueError(f"{shlex.join(overrides)}: a file includes itself, or nests too deep") from None
    except Exception as error:  # nothing but the configuration is at work here
        text = one_line(error, overrides) or type(error).__name__
        if isinstance(error, AttributeError | TypeError):  # Hydra's own, which does not say where
            text = f"{shlex.join(overrides)}: a file or an override gives a node a value that it cannot have ({text})"
        raise ValueError(text) from None


def _unreadable(text: str, parser: OverridesParser) -> str:
    """Return the complaint about an override that Hydra cannot read, with the quotes that would help."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: an override is key=value"
    quoted = key + "='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    try:
        parser.parse_overrides([quoted])
    except (HydraException, RecursionError):
        return f"{text}: cannot be read as key=value"
    is_plain = not re.search(r'["$`!\\]', quoted)  # then a shell takes it in double quotes, which are easier to read
    shown = f'"{quoted}"' if is_plain else shlex.quote(quoted)
    return f"{text}: Hydra cannot read this value as it stands; quote it: {shown}"
