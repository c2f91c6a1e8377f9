"""Results that are computed once and shared, and the seconds that sharing saves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

R = TypeVar("R")


class Stamp(Protocol):
    """A point in time: a number of seconds, or something that becomes known later."""

    def __sub__(self, earlier: Any, /) -> float:
        """Return the seconds since an earlier stamp of the same clock. This may wait until they are known."""
        ...


@dataclass(eq=False)
class Span:
    """The time between two stamps, and the spans of the results that were reused in it.

    Nothing waits for the seconds before they are read.
    """

    begin: Stamp
    end: Stamp
    reused: Sequence[Span] = ()

    @cached_property
    def seconds(self) -> float:
        """The seconds of this span and of those it reused."""
        return self.end - self.begin + sum(span.seconds for span in self.reused)


class Beginning(NamedTuple):
    """The beginning of a span: its stamp, and how many results had been reused by then."""

    stamp: Stamp
    reused: int


@dataclass
class Stopwatch:
    """A clock, and the spans in which reused results were computed.

    With it, the time of a variant counts shared results as if the variant had computed them by itself.
    """

    clock: Callable[[], Stamp] = lambda: 0.0
    reused: list[Span] = field(default_factory=list)  # once for every time that a result was used again
    user: Hashable = None  # the running variant, if known; a result that it uses twice counts once

    def begin(self) -> Beginning:
        """Return the beginning of a span, for `since`."""
        return Beginning(self.clock(), len(self.reused))

    def since(self, begin: Beginning) -> Span:
        """Return the span from its beginning to the present, with the results that it reused."""
        return Span(begin.stamp, self.clock(), tuple(self.reused[begin.reused :]))


@dataclass
class Memo:
    """Results by key. Each is computed at the first call and returned at later calls."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    _results: dict[Hashable, tuple[Any, Span, set[Hashable]]] = field(default_factory=dict)
    _notes: list[Callable[[Hashable, Any], None]] = field(default_factory=list)

    def __call__(self, key: Hashable, compute: Callable[[], R]) -> R:
        """Return the result of `compute` at the first call with this key."""
        if key in self._results:
            known: tuple[R, Span, set[Hashable]] = self._results[key]
            if self.watch.user is None or self.watch.user not in known[2]:
                self.watch.reused.append(known[1])
                known[2].add(self.watch.user)
            return known[0]
        begin = self.watch.begin()
        result = compute()
        # by itself, a variant would also have computed what `compute` took from other results
        self._results[key] = result, self.watch.since(begin), {self.watch.user}
        for note in self._notes:
            note(key, result)
        return result

    @contextmanager
    def noting(self, note: Callable[[Hashable, Any], None]) -> Iterator[None]:
        """Call `note` with the key and the result of all that is known now, and of all that is computed meanwhile."""
        for key, (result, _, _) in self._results.items():
            note(key, result)
        self._notes.append(note)
        try:
            yield
        finally:
            self._notes.remove(note)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._results

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._results)

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Forget all results but these."""
        self._results = {key: self._results[key] for key in keys}
