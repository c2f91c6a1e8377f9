"""The command line: `launcher=…` for `hydra/launcher=…`, and the command that a plan remembers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_SHORT = re.compile(r"(~|\+{0,2})launcher([=.])")


def expand(argv: Sequence[str]) -> list[str]:
    """Arguments with the short form written out: `launcher=x` chooses, `launcher.y=z` sets, as Hydra wants it."""
    return [_SHORT.sub(_long, argument, count=1) if _SHORT.match(argument) else argument for argument in argv]


def _long(found: re.Match[str]) -> str:
    return f"{found[1]}hydra{'/' if found[2] == '=' else '.'}launcher{found[2]}"


def command(argv: Sequence[str]) -> str:
    """What a user types to issue these arguments again."""
    return shlex.join(["python", "-m", "kvbench", *argv])


def check_mode(sweeping: bool, overrides: Sequence[str]) -> None:
    """A launcher chosen for a single run would be ignored.

    Raises:
        ValueError: without -m, the overrides of Hydra's own node choose or set a launcher.
    """
    chosen = [o for o in overrides if re.match(r"(~|\+{0,2})hydra[/.]launcher\b", o)]
    if chosen and not sweeping:
        raise ValueError(f"{chosen[0]}: launchers are for sweeps; add -m (a sweep of one job is fine)")
