"""A method has the same dials and keeps the same tokens from Python and on the command line, with the model's hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import kvbench
from kvbench import models
from kvbench.prompts import renderer
from kvbench.run import runner
from kvbench.run.jobs import Job
from tests.helpers.methods import head_table, ratio_table
from tests.helpers.runs import records

Jobs = Callable[..., list[Job]]
HINTS: dict[str, dict[str, Any]] = {
    "snapkv": {"kernel_size": 21},
    "snapkv+h2o_decode": {"kernel_size": 3},
    "headkv": {"kernel_size": 21, "head_table": head_table(4, 4)},
    "prefixkv_offline": {"layer_profile": ratio_table(4)},
}


def words(hints: dict[str, Any]) -> list[str]:
    return [f"+model.hints.{name}={value}" for name, value in hints.items()]


@pytest.mark.parametrize("name", HINTS)
def test_both_keep_the_same_tokens(name: str, jobs: Jobs) -> None:
    [job] = jobs([f"method={name}", "budget=90", *words(HINTS[name])])
    [outcome] = runner.run_jobs([job])
    assert outcome.error is None
    loaded = kvbench.load_model("tiny", hints=HINTS[name])
    assert kvbench.load_method(name, loaded) == kvbench.load_method(name, loaded.model) == job.variant.method
    assert kvbench.load_method(name, loaded).dials == job.variant.method.dials
    samples = job.benchmark.samples(loaded.tokenizer)
    prompts = list(map(renderer(job.model, loaded.tokenizer, job.benchmark), samples))
    outs = kvbench.generate(loaded.model, loaded.tokenizer, prompts, [(name, 90)], max_new_tokens=6)
    of_run = {record["id"]: record for record in records(outcome)}
    for sample, (out,) in zip(samples, outs, strict=True):
        assert out.token_ids == of_run[sample.id]["token_ids"] and out.kept == of_run[sample.id]["kept"]


@pytest.mark.parametrize("name", ["snapkv", "headkv"])
def test_plain_transformers_code_has_the_hints_too(name: str) -> None:
    loaded = kvbench.load_model("tiny", hints=HINTS["headkv"])
    ids = loaded.tokenizer("The code of the door is 7305. " * 20, return_tensors="pt").input_ids
    with kvbench.compressed(loaded.model, name, budget=60) as block:
        loaded.model.generate(ids, max_new_tokens=4, do_sample=False)
    [[out]] = kvbench.generate(loaded.model, loaded.tokenizer, [ids], [(name, 60)], max_new_tokens=4)
    assert block.cache is not None
    kept = [[tokens + 3 for tokens in layer] for layer in out.kept]  # three tokens of the answer are in the cache
    assert block.cache.kept == kept


def test_hints_are_defaults_and_no_more() -> None:
    plain, hinted = kvbench.load_model("tiny"), kvbench.load_model("tiny", hints={"kernel_size": 21})
    assert kvbench.load_method("snapkv").dials["kernel_size"] == 7
    assert (
        kvbench.load_method("snapkv", plain) == kvbench.load_method("snapkv") != kvbench.load_method("snapkv", hinted)
    )
    assert kvbench.load_method("snapkv", hinted, kernel_size=5).dials["kernel_size"] == 5
    method = kvbench.load_method("snapkv", hinted, pooling="none")  # a hint without effect is no mistake of the user
    assert method.dials["pooling"] == "none"
    with pytest.raises(ValueError, match=r"^method\.kernel_size=9: has no effect with method\.pooling=none"):
        kvbench.load_method("snapkv", hinted, pooling="none", kernel_size=9)


def test_a_model_from_elsewhere_has_no_hints() -> None:
    loaded = kvbench.load_model("tiny", hints={"kernel_size": 21})
    other = type(loaded.model)(loaded.model.config)
    assert models.described(loaded.model)["hints"] == {"kernel_size": 21}
    assert models.described(other) == models.described(None) == {}
    assert kvbench.load_method("snapkv", other).dials["kernel_size"] == 7


def test_a_hint_that_no_method_reads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.hints\.kernel=5: no method reads it\. Did you mean 'kernel_size'"):
        kvbench.load_model("tiny", hints={"kernel": 5})
