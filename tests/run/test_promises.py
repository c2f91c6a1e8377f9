"""Records of methods that promise tokens, and of those that are measured; tables that do not fit the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvbench import store
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.allowance import allowed
from kvbench.methods.budgets import Allowance, ByteShare
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


def test_bytes_are_promised_measured_and_recorded(jobs: Jobs) -> None:
    """One plan holds budgets of all kinds, and the full cache once. The folder, label and identity say which it is."""
    asked = {"ada_snapkv+kivi": "0.22B", "h2o_decode": ".30B", "streaming_llm_decode": "0.3"}
    full = [["method=fullkv", f"budget={budget}"] for budget in ("0.3B", "0.22B")]
    prepared = jobs(*([f"method={name}", f"budget={budget}"] for name, budget in asked.items()), *full)
    assert [job.label["budget"] for job in prepared] == ["0.22B", "0.3B", "0.3", "full", "full"]
    assert [job.identity["budget"] for job in prepared] == ["0.22B", "0.3B", 0.3, None, None]
    assert prepared[3].folder == prepared[4].folder
    for outcome, job in zip(runner.run_jobs(prepared), prepared, strict=True):
        assert outcome.error is None and f"-b{job.label['budget']}-" in outcome.folder.name
        assert store.load_run(outcome.folder).manifest["label"]["budget"] == job.label["budget"]
        for record in records(outcome):
            if job.label["budget"].endswith("B"):
                share = float(job.label["budget"][:-1])
                assert record["promise"] == "bytes"
                assert record["budget_bytes"] == int(share * record["kv_bytes_full"] + 1e-6)
                assert 0.99 <= record["held_bytes"] / record["budget_bytes"] <= 1
                assert record["budget_tokens"] == pytest.approx(record["kept_mean"])
            else:
                assert "budget_bytes" not in record
                state = 8 * sum(map(sum, record["kept"])) if job.label["method"] != "fullkv" else 0
                assert record["held_bytes"] == record["kv_bytes"] + state


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["method=snapkv+kivi", "budget=0.9B"], "holds all"),
        (["method=snapkv", "budget=0.01B"], "method.window=32"),
        (["method=ada_snapkv+kivi", "budget=0.05B"], "method.window=32"),
    ],
)
def test_bytes_out_of_reach_are_one_line_before_weights_load(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, overrides: list[str], hint: str
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("no weights are needed to see this")

    monkeypatch.setattr(runner.models, "load", forbidden)
    (outcome,) = runner.run_jobs(jobs(overrides))
    assert str(outcome.error).startswith(f"{overrides[1]}") and hint in str(outcome.error)
    assert "\n" not in str(outcome.error) and not outcome.folder.exists()


def test_bytes_that_a_prompt_cannot_use_are_said_once_per_run(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    """QAQ gives each token as many bits as it needs, and the check before the run takes the most."""
    few_bits = ["method=snapkv+qaq", "method.error=100", "method.q_norm=0.001"]
    (outcome,) = runner.run_jobs(jobs([*few_bits, "budget=0.3B"]))
    assert outcome.error is None and len(records(outcome)) > 1
    for record in records(outcome):
        assert record["kept_mean"] == record["span"] and record["held_bytes"] < 0.95 * record["budget_bytes"]
    (line,) = [message for message in caplog.messages if "cannot be used" in message]
    share = records(outcome)[0]["held_bytes"] / records(outcome)[0]["kv_bytes_full"]
    assert f"tokens take {share:.3g} of the full cache's bytes, so the budget of 0.3 cannot be used" in line


def test_more_bytes_than_promised_fail_the_run(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RaggedCache.held_bytes
    monkeypatch.setattr(RaggedCache, "held_bytes", lambda self, row: int(1.02 * real(self, row)))
    (outcome,) = runner.run_jobs(jobs(["method=snapkv", "budget=0.3B"]))
    assert "snapkv-0.3B holds" in str(outcome.error) and status(outcome)["status"] == "failed"


def test_a_short_prompt_under_a_budget_in_bytes_keeps_its_most_recent_tokens(jobs: Jobs) -> None:
    """They are plain, and as many as the bytes hold; a longer prompt is compressed by the method itself."""
    (job,) = jobs(["method=ada_snapkv+kivi", "budget=0.22B"])
    assert job.variant_for(300) is job.variant
    short = job.variant_for(100)
    assert short.method.name == "streaming_llm" and short.budget == ByteShare(0.22)
    assert allowed(short.method, short.budget, 100, job.cache_shape) == Allowance(22, 0)
    with pytest.raises(ValueError, match="^budget=0.22B"):
        job.variant_for(4)


def test_a_chat_template_that_stays_must_fit_into_the_budget(jobs: Jobs) -> None:
    """A share of a prompt that is too short keeps the most recent tokens; a number of tokens is refused."""
    (share,) = jobs(["method=kvzip", "budget=0.1"])
    assert share.variant_for(300, 29) is share.variant
    assert (share.variant_for(300, 30).method.name, share.variant_for(300, 30).budget) == ("streaming_llm", 30)
    (tokens,) = jobs(["method=kvzip", "budget=24"])
    assert tokens.variant_for(300, 23) is tokens.variant
    with pytest.raises(ValueError, match=r"^budget=24: kvzip always keeps 40 tokens \(its chat template\); the budget"):
        tokens.variant_for(300, 40)
    (plain,) = jobs(["method=snapkv", "budget=40"])
    assert plain.variant_for(300, 60) is plain.variant
