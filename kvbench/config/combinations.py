"""The jobs of a sweep: every combination of the listed values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import Override, RangeSweep

MOST_JOBS = 10_000


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
        if not override.is_discrete_sweep():
            raise ValueError(f"{override.input_line}: give a list of values, such as {key}=1,2")
        total *= _count(override)
        if total > MOST_JOBS:
            raise ValueError(
                f"{override.input_line}: the sweep would have more than {MOST_JOBS} jobs; list fewer values"
            )
        axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if not axes[key]:
            raise ValueError(f"{override.input_line}: stands for no value, so there is nothing to sweep")
    for combination in itertools.product(*axes.values()):
        yield list(combination)


def _count(override: Override) -> int:
    """Return how many values a list has, at least 1. Raises ValueError for a range that never ends."""
    value = override.value()
    if not isinstance(value, RangeSweep):
        return max(1, len(list(override.sweep_iterator())))
    numbers = (value.start, value.stop, value.step)
    if any(number is None or not math.isfinite(number) for number in numbers) or not value.step:
        raise ValueError(f"{override.input_line}: a range needs a finite start, stop and step other than 0")
    start, stop, step = (float(number) for number in numbers if number is not None)
    return max(1, min(MOST_JOBS + 1, math.ceil((stop - start) / step)))


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
