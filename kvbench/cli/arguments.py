"""The command line of `kvbench run`: its flags, `launcher=…` for `hydra/launcher=…`, and the command a plan stores."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from kvbench.common.command import Parser

_SHORT = re.compile(r"(~|\+{0,2})launcher([=.])")
_SPELLING = {"multirun": "-m"}  # as plans store it
_REFUSED = {
    "--config-dir": "own YAML files go into conf/ of kvbench",
    "--config-path": "own YAML files go into conf/ of kvbench",
    "--config-name": "the configuration is conf/config.yaml; put what you change into conf/experiment/NAME.yaml",
    "--experimental-rerun": "a pickle may run code; issue the command again instead, what is recorded is not computed",
}


@dataclass(frozen=True)
class Arguments:
    """The flags, in Hydra's own spelling, and the overrides of a command."""

    flags: list[str]
    overrides: list[str]

    package: str | None = None

    @property
    def composes(self) -> bool:
        """Return True if Hydra will compose the configuration: for a run, a sweep, or to print it."""
        return not {"--hydra-help", "--shell-completion"} & set(self.flags)


def parse(argv: Sequence[str]) -> Arguments:
    """Return flags and overrides, the short form of the launcher written out.

    Raises:
        ValueError: an unknown flag, one that would not do what it says, or two that exclude each other.
    """
    options = vars(_parser().parse_intermixed_args(list(argv)))
    overrides = [_written_out(override) for override in options.pop("overrides")]
    for flag, reason in _REFUSED.items():
        value = options.pop(flag.strip("-").replace("-", "_"))
        if value is not None:
            raise ValueError(f"{flag} {value}: {reason}")
    modes = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if options[name]]
    if len(modes) > 1:
        raise ValueError(f"{' and '.join('--' + name.replace('_', '-') for name in modes)}: choose one of them")
    for name in ("resolve", "package"):
        if options[name] and not options["cfg"]:
            raise ValueError(f"--{name}: says how --cfg prints the configuration; add --cfg job")
    flags = []
    for name, value in options.items():
        flag = _SPELLING.get(name, f"--{name.replace('_', '-')}")
        flags += [] if value in (None, False) else [flag] if value is True else [flag, value]
    return Arguments(flags, overrides, options["package"])


def _parser() -> Parser:
    parser = Parser(prog="kvbench run", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for names in (("--help", "-h"), ("--hydra-help",), ("--resolve",), ("--run", "-r"), ("--multirun", "-m")):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    kinds = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", choices=kinds)
    for flag, short in zip(_REFUSED, ("-cd", "-cp", "-cn", None), strict=True):
        parser.add_argument(flag, *filter(None, [short]))
    return parser


def _written_out(override: str) -> str:
    """Return the override as Hydra wants it: `launcher=x` chooses a launcher, `launcher.y=z` sets an option of it."""
    return _SHORT.sub(_long, override, count=1) if _SHORT.match(override) else override


def _long(match: re.Match[str]) -> str:
    return f"{match[1]}hydra{'/' if match[2] == '=' else '.'}launcher{match[2]}"


def shell_command(argv: Sequence[str]) -> str:
    """Return what a user types to issue these arguments again."""
    return shlex.join(["python", "-m", "kvbench", *(argv or ["run"])])  # without arguments kvbench prints its overview


def check_package(cfg: DictConfig, arguments: Arguments) -> None:
    """Raise ValueError if `--package` names no node of the configuration."""
    package = arguments.package
    if package not in (None, "_global_") and OmegaConf.select(cfg, package) is None:
        raise ValueError(f"--package {package}: no such node; choose one of {', '.join(map(str, cfg))}")


def check_mode(sweeping: bool, overrides: Sequence[str]) -> None:
    """Refuse a launcher for a single run, which would be ignored.

    Raises:
        ValueError: without -m, the overrides of Hydra's own node choose or set a launcher.
    """
    chosen = [o for o in overrides if re.match(r"(~|\+{0,2})hydra[/.]launcher\b", o)]
    if chosen and not sweeping:
        raise ValueError(f"{chosen[0]}: launchers are for sweeps; add -m (a sweep of one job is fine)")
