"""The jobs of a sweep: every combination of the listed values."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep

from kvbench.config.groups import method
from kvbench.config.loggers import check_not_swept

MOST_JOBS = 10_000
_ONE_VALUE = re.compile(r"^(\w+\.[^=]+=)choice\(([^,(){}\[\]]*)\)$")
log = logging.getLogger(__name__)


def combinations(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield the overrides of every job, in the order of the listed values; of equal keys, the last counts.

    Raises:
        ValueError: a list is empty, or there are more than `MOST_JOBS` combinations; nothing is expanded before.
    """
    axes: dict[str, list[str]] = {}
    total = 1
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
            continue
        check_not_swept(override)
        if not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line}: give a list of values, such as {key}=1,2")
        total *= _count(override)
        if total > MOST_JOBS:
            raise ValueError(
                f"{override.input_line}: the sweep would have more than {MOST_JOBS} jobs; list fewer values"
            )
        axes[key] = [f"{key}={value}" for value in _values(override)]
        if not axes[key]:
            raise ValueError(f"{override.input_line}: stands for no value, so there is nothing to sweep")
    for combination in itertools.product(*axes.values()):
        yield list(combination)


def has_pattern(override: Override) -> bool:
    """Return whether the values are those of a pattern, alone or in a list: `glob(*)`, `glob(ada_*),think+kivi`."""
    value = override.value()
    return any(isinstance(item, Glob) for item in (value.list if isinstance(value, ChoiceSweep) else [value]))


def _values(override: Override) -> list[str]:
    """Return the listed values as text, patterns spelled out. Raises ValueError for a pattern that fits nothing."""
    value = override.value()
    if not isinstance(value, ChoiceSweep) or not has_pattern(override):
        return list(override.sweep_string_iterator())
    assert override.config_loader is not None
    names = dict[str, None]()  # in order, each once
    items: list[object] = [*value.list]
    for item in items:
        named = [str(item)]
        if isinstance(item, Glob):
            named = item.filter(override.config_loader.get_group_options(override.key_or_group))
            if not named:
                raise ValueError(f"{override.input_line}: a pattern in it stands for no value")
        names |= dict.fromkeys(named)
    return list(names)


def _count(override: Override) -> int:
    """Return how many values a list has, at least 1. Raises ValueError for a range that never ends."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return max(1, len(_values(override)))
    numbers = (value.start, value.stop, value.step)
    if any(number is None or not math.isfinite(number) for number in numbers) or not value.step:
        raise ValueError(f"{override.input_line}: a range needs a finite start, stop and step other than 0")
    start, stop, step = (float(number) for number in numbers if number is not None)
    return max(1, min(MOST_JOBS + 1, math.ceil((stop - start) / step)))


def fitting(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return jobs of several methods without the dials that their method does not have, and each job once.

    In `method=snapkv,tova method.window=8,16`, tova has no window: it is one job. The log says so. A dial that none of
    the methods has stays where it is, so that composing the job refuses it.
    """
    methods = [_method(job) for job in jobs]
    dials = {name: _dials(name) for name in dict.fromkeys(methods) if name is not None}
    known = frozenset[str]().union(*dials.values())
    fitted: dict[tuple[str, ...], None] = {}
    lacking: dict[str, list[str]] = {}
    for job, name in zip(jobs, methods, strict=True):
        lines = []
        for line in job:
            group, _, dial = line.partition("=")[0].partition(".")
            if name is not None and group == "method" and dial in known - dials[name]:
                lacking.setdefault(dial, []).append(name)
            else:
                lines.append(line)
        fitted[tuple(lines)] = None
    for dial, names in lacking.items():
        log.info("method.%s: no dial of %s, whose runs go without it", dial, ", ".join(dict.fromkeys(names)))
    return [list(lines) for lines in fitted]


def _method(job: Sequence[str]) -> str | None:
    """Return the method that a job names; None if it takes that of the configuration."""
    return next((line.partition("=")[2] for line in reversed(job) if line.startswith("method=")), None)


def _dials(name: str) -> frozenset[str]:
    """Return the dials of a method; none for a name that composing will refuse."""
    try:
        return frozenset(method(name).dials)
    except ValueError:
        return frozenset()


def typed(words: Sequence[str]) -> list[str]:
    """Return the words of a command without the lists of one value that `deferred` makes."""
    return [_ONE_VALUE.sub(r"\1\2", word) for word in words]


def deferred(overrides: Sequence[Override]) -> list[str]:
    """Return the overrides of a sweep in which settings of a swept group are lists of one value.

    Hydra applies what is no list to the group's default before it looks at the sweep. Of `method=tova,scope
    method.buffer=2`, the default method would be asked for a setting that it need not have.
    """
    swept = {str(override.key_or_group) for override in overrides if override.is_sweep_override()}
    return [_listed(override, swept) for override in overrides]


def _listed(override: Override, swept: set[str]) -> str:
    line = str(override.input_line)
    group, dot, _ = str(override.key_or_group).partition(".")
    if not dot or group not in swept or override.is_sweep_override() or override.is_delete():
        return line
    key, _, value = line.partition("=")
    return f"{key}=choice({value})"
