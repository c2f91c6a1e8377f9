"""Records and statuses of runs, engines that fail on demand, and the prefills that an engine makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import pytest

from kvbench.engine import start
from kvbench.engine.caches import Place
from kvbench.engine.variant import Generation, Request
from kvbench.run import batching
from kvbench.run.runner import Outcome

Fails = Callable[[list[Request]], BaseException | None]


def records(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the lines of samples.jsonl."""
    return [json.loads(line) for line in (outcome.folder / "samples.jsonl").read_text().splitlines()]


def status(outcome: Outcome) -> dict[str, Any]:
    """Return the content of status.json."""
    content: dict[str, Any] = json.loads((outcome.folder / "status.json").read_text())
    return content


def answers(of: Outcome | Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return per answered sample what the model did: its id, tokens, kept counts and scores."""
    lines = records(of) if isinstance(of, Outcome) else of
    return sorted((r["id"], tuple(r["token_ids"]), str(r["kept"]), str(r["scores"])) for r in lines)


def let_engine_fail(monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    """Let batches fail: `fails` gets the requests in flight when one joins and returns an exception or None."""
    real = batching.stream

    def stream(
        model: Any, tokenizer: Any, draw: Callable[[Sequence[Request]], Request | None], **settings: Any
    ) -> Generator[tuple[Request, list[Generation]], None, None]:
        in_flight: list[Request] = []

        def watched(drawn: Sequence[Request]) -> Request | None:
            request = draw(drawn)
            if request is not None:
                in_flight.append(request)
                error = fails(in_flight)
                if error is not None:
                    raise error
            return request

        for request, generations in real(model, tokenizer, watched, **settings):
            in_flight.remove(request)
            yield request, generations

    monkeypatch.setattr(batching, "stream", stream)


def count_rows(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> list[int]:
    """Return a list that gets the number of rows of every object of a class of passes that the engine makes."""
    rows: list[int] = []

    class Counted(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, places: Sequence[Sequence[Place]], **settings: Any) -> None:
            rows.append(sum(map(len, places)))
            super().__init__(*args, places=places, **settings)

    monkeypatch.setattr(start, kind.__name__, Counted)
    return rows
