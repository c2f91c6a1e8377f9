"""Records of methods that promise tokens, and of those that are measured; tables that do not fit the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvbench.run import runner
from kvbench.run.jobs import Job
from tests.helpers.methods import head_table
from tests.helpers.runs import records, status

Jobs = Callable[..., list[Job]]


def test_records_say_what_the_kept_tokens_were_checked_against(jobs: Jobs) -> None:
    """One plan holds a method of each kind. A measured one takes no budget, and keeps what it likes."""
    asked = {"snapkv": "kept", "fullkv": "all", "corm": "measured", "elastic_cache": "kept", "critical": "kept"}
    small = {"corm": ["method.history=20", "method.recent=8"]}
    prepared = jobs(*([f"method={name}", "budget=100", *small.get(name, [])] for name in asked))
    for outcome, (name, promise) in zip(runner.run_jobs(prepared), asked.items(), strict=True):
        assert outcome.error is None and status(outcome)["status"] == "done"
        for record in records(outcome):
            assert record["promise"] == promise, name
            assert record["budget_tokens"] == (100 if promise == "kept" else None)
            if promise == "measured":
                assert outcome.folder.name.startswith("corm-bfull-")
                assert 8 <= record["kept_mean"] < record["span"]
                assert len({count for layer in record["kept"] for count in layer}) > 1, "heads differ"


def test_a_method_without_a_budget_is_one_run_under_any(jobs: Jobs) -> None:
    first, second = jobs(["method=corm", "budget=100"], ["method=corm", "budget=0.5"])
    assert first.folder == second.folder and first.variant.budget is None


@pytest.mark.parametrize("shape", [(4, 2), (8, 2), (3, 4), (4, 8)])
def test_a_table_of_another_model_is_one_line_before_weights_load(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("no weights are needed to see this")

    monkeypatch.setattr(runner.models, "load", forbidden)
    table = head_table(*shape)
    (outcome,) = runner.run_jobs(jobs(["method=headkv", f"method.table={table}", "budget=100"]))
    layers, heads = shape
    message = f"{table}: has scores for {layers} layers of {heads} query heads, but the model has 4 layers of 4"
    assert str(outcome.error) == f"method.table={message}"
    assert not outcome.folder.exists(), "no folder is created"


def test_the_table_of_the_model_is_used(jobs: Jobs) -> None:
    """Heads get what their scores say; in all, the budget is kept."""
    (outcome,) = runner.run_jobs(jobs(["method=headkv", f"method.table={head_table(4, 4)}", "budget=100"]))
    for record in records(outcome):
        assert sum(map(sum, record["kept"])) == 100 * 8
        assert len({count for layer in record["kept"] for count in layer}) > 4
