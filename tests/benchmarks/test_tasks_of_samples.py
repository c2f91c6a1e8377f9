"""The task that shipped benchmarks give to their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kvbench.benchmarks.base import ModelFacts, Sample
from kvbench.benchmarks.longbench_datasets import DATASETS, task_of
from kvbench.benchmarks.needle import Needle
from kvbench.benchmarks.ruler.suite import Ruler
from kvbench.common.tasks import TASKS
from kvbench.config import options
from kvbench.models import ModelSpec
from kvbench.prompts import renderer
from tests.helpers.tokenizers_for_tests import CHATML, gpt_style

LOCALIZATION = [*list(DATASETS)[:8], "triviaqa", "passage_retrieval_en", "passage_retrieval_zh"]


def test_longbench_has_question_answering_and_retrieval_on_one_side() -> None:
    assert [name for name in DATASETS if task_of(name) == "localization"] == sorted(
        LOCALIZATION, key=list(DATASETS).index
    )
    assert {task_of(name) for name in DATASETS} == set(TASKS)


def test_a_sample_refuses_a_task_of_another_name() -> None:
    with pytest.raises(ValueError, match=r"^benchmark: sample s: task='qa' must be one of localization, aggregation"):
        Sample("s", "", "", "", (), 1, task="qa")


def built(benchmark: str, **settings: Any) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(options("benchmark")[benchmark]))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if key != "_target_"} | settings


def test_the_task_reaches_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    tokenizer = gpt_style(CHATML)  # makes a token of every letter
    model_node = {str(key): value for key, value in OmegaConf.load(options("model")["tiny"]).items()}
    spec = ModelSpec.from_node(model_node)
    suite = Ruler(**built("ruler", tasks=["niah_single_1", "vt", "cwe", "fwe"], lengths=[2600], samples=1))
    parts = [
        *suite.benchmarks(ModelFacts("tiny")),
        Needle(**built("needle", lengths=[900], depths=[50], seed=0, reference="1")),
    ]
    tasks = [renderer(spec, tokenizer, part)(part.samples(tokenizer)[0]).task for part in parts]
    assert tasks == ["localization", "localization", "aggregation", "aggregation", "localization"]
