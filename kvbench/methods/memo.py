"""Results that are computed once and shared, and the seconds that sharing saves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

R = TypeVar("R")


@dataclass
class Stopwatch:
    """A clock, and the seconds that reused results took when they were computed.

    With it, the time of a variant counts shared results as if the variant had computed them by itself.
    """

    clock: Callable[[], float] = lambda: 0.0
    reused_s: float = 0.0
    user: Hashable = None  # the running variant, if known; a result that it uses twice counts once


@dataclass
class Memo:
    """Results by key. Each is computed at the first call and returned at later calls."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    _results: dict[Hashable, tuple[Any, float, set[Hashable]]] = field(default_factory=dict)

    def __call__(self, key: Hashable, compute: Callable[[], R]) -> R:
        """Return the result of `compute` at the first call with this key."""
        if key in self._results:
            known: tuple[R, float, set[Hashable]] = self._results[key]
            if self.watch.user is None or self.watch.user not in known[2]:
                self.watch.reused_s += known[1]
                known[2].add(self.watch.user)
            return known[0]
        begin, reused_s = self.watch.clock(), self.watch.reused_s
        result = compute()
        # by itself, a variant would also have computed what `compute` took from other results
        seconds = self.watch.clock() - begin + self.watch.reused_s - reused_s
        self._results[key] = result, seconds, {self.watch.user}
        return result

    def __contains__(self, key: Hashable) -> bool:
        return key in self._results

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._results)

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Forget all results but these."""
        self._results = {key: self._results[key] for key in keys}
