"""Decode steps that are recorded and replayed, by a recorder for the CPU that imitates a CUDA graph."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.common.paths import conf_dir
from kvbench.engine import graph
from kvbench.engine.caches import num_layers
from kvbench.engine.probe import checked_plan
from kvbench.models.load import Loaded
from tests.helpers.methods import budget_for, load, shipped
from tests.helpers.recorder import recorded_engine, tokens, with_small_reserve

PROMPTS = [list(range(5, 65)), list(range(30, 120)), list(range(9, 50))]
DIMS = OmegaConf.load(conf_dir() / "model" / "tiny.yaml").dims
VARIANTS = [("fullkv", None), ("snapkv", 40), ("ada_snapkv", 36), ("streaming_llm", 38)]


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return kvbench.load_model("tiny")


@pytest.fixture
def recorded(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    engine = recorded_engine(tiny, monkeypatch)

    def generate(prompts: Any = PROMPTS, variants: Any = VARIANTS, **settings: Any) -> Any:
        return engine.generate(prompts, variants, **settings)

    return SimpleNamespace(generate=generate, batches=engine.batches)


def test_recorded_steps_give_the_same_tokens(tiny: Loaded, recorded: SimpleNamespace) -> None:
    """Rows of several prompts join and leave at different steps."""
    settings = {"max_new_tokens": 24, "max_prompts": 2}
    free = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, VARIANTS, stop_ids=[], **settings)
    stops = {g.token_ids[n] for of_prompt, n in zip(free, (6, 11, 15), strict=True) for g in of_prompt[:2]}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, VARIANTS, stop_ids=stops, **settings)
    assert len({len(ids) for of_prompt in tokens(expected) for ids in of_prompt}) > 2
    outs = recorded.generate(stop_ids=stops, **settings)
    assert tokens(outs) == tokens(expected)
    assert [[g.kept_max for g in p] for p in outs] == [[g.kept_max for g in p] for p in expected]
    assert recorded.batches[0].replayed > 0


def test_fused_steps_are_recorded(tiny: Loaded, recorded: SimpleNamespace) -> None:
    settings = {"max_new_tokens": 24, "max_prompts": 2, "stop_ids": []}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, VARIANTS, **settings)
    outs = recorded.generate(fused="true", **settings)
    assert tokens(outs) == tokens(expected)
    assert {g.decode_step for of_prompt in outs for g in of_prompt} == {"fused"}
    assert recorded.batches[0].replayed > 0


def test_all_steps_but_the_first_are_replayed(recorded: SimpleNamespace) -> None:
    (out,) = recorded.generate(PROMPTS[:1], stop_ids=[], max_new_tokens=24)
    assert recorded.batches[0].replayed == 24 - 1 - graph._STEADY  # the first token is the prefill's
    kept = out[0].kept[0][0]
    assert out[0].kept_max == kept + 23


def test_a_step_that_moves_the_cache_is_eager(
    tiny: Loaded, recorded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step beyond the reserve moves the cache; the steps after it are recorded again."""
    settings = {"stop_ids": [], "max_new_tokens": 40}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS[:1], VARIANTS, **settings)
    monkeypatch.setattr(RaggedCache, "add", with_small_reserve(RaggedCache.add))
    assert tokens(recorded.generate(PROMPTS[:1], **settings)) == tokens(expected)
    steps = recorded.batches[0]
    assert 0 < steps.replayed < 40 - 1 - graph._STEADY
    assert steps._cache.moves > 0


@pytest.mark.parametrize(
    ("name", "dials", "eager"),
    [
        ("h2o_decode", {}, 0),
        ("h2o_decode", {"reduce": "max", "window": 4}, 0),
        ("h2o_decode", {"buffer": 6}, 4),  # a cut of several tokens is work for the host, every seventh step
        ("h2o_decode", {"buffer": 9, "interval": 8}, 4),
        ("h2o_decode", {"phase": "decode"}, 0),  # the first step cuts the prompt; it would be eager anyway
        ("h2o_decode", {"decode_budget": 0.5}, 0),
        ("tova", {}, 0),
        ("tova+ada_snapkv", {}, 0),  # heads that hold different tokens
        ("ada_pyramidkv+h2o_decode", {}, 0),
        ("streaming_llm_decode", {}, 0),
        ("streaming_llm_true", {"chunk": 16}, 0),  # keys of sinks turn in every step
        ("scope", {"decode_budget": 8, "recent": 4}, 0),
        ("scope", {"decode_budget": 9, "recent": 3, "schedule": "adaptive"}, 0),
        ("scope", {"decode_budget": 9, "recent": 3, "schedule": "discontinuous", "delta": 6}, 4),  # a cut every 7 steps
        ("cam_decode", {"merge_budget": 4, "window": 4}, 0),
        ("cam_decode", {"buffer": 6}, 4),
        ("ada_pyramidkv+cam_decode", {}, 0),
        ("corm", {"history": 12, "recent": 4, "interval": 8}, 4),  # lengths come from the device every eighth step
        ("corm", {"history": 12, "recent": 4}, 0),  # in every step: the host does this part in every replay
        ("fastgen", {"recovery": 0.5, "frequent": 0.1, "local": 0.1, "ahead": 8}, 0),  # punctuation raises limits
    ],
)
def test_a_batch_with_decode_policies_keeps_its_graph(
    tiny: Loaded, recorded: SimpleNamespace, name: str, dials: dict[str, Any], eager: int
) -> None:
    budget = None if name in ("corm", "fastgen") else 36
    variants = [("fullkv", None), (kvbench.load_method(name, **dials), budget), ("ada_snapkv", 36)]
    settings = {"stop_ids": [], "max_new_tokens": 32, "max_prompts": 3}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, variants, **settings)
    outs = recorded.generate(variants=variants, **settings)
    assert tokens(outs) == tokens(expected)
    assert [[g.kept_max for g in p] for p in outs] == [[g.kept_max for g in p] for p in expected]
    assert len(recorded.batches) == 1, "every cut after the first step leaves the graph valid"
    assert recorded.batches[0].replayed >= 32 - 1 - graph._STEADY - eager


TOGETHER = ["ada_snapkv+kivi", "snapkv+think", "snapkv+kivi+h2o_decode", "fastgen+kivi", "quest", "kivi", "corm"]


@pytest.mark.parametrize("fused", ["false", "true"])
def test_a_batch_with_methods_that_need_the_host_keeps_its_graph(
    tiny: Loaded, recorded: SimpleNamespace, fused: str
) -> None:
    check_recorded(tiny, recorded, TOGETHER, PROMPTS[:2], fused=fused)


@pytest.mark.parametrize("name", [*shipped(), *TOGETHER[:4]])
def test_a_batch_with_any_method_keeps_its_graph(tiny: Loaded, recorded: SimpleNamespace, name: str) -> None:
    """The work that needs the host in every step is left out of the recording; the rest of the step stays in it."""
    check_recorded(tiny, recorded, [name], PROMPTS[1:2])


def small(names: Sequence[str]) -> list[kvbench.Variant]:
    """Return methods and combinations with settings that suit the short prompts."""
    methods = [load(name) if name in shipped() else kvbench.load_method(name) for name in names]
    return [kvbench.Variant(method, budget_for(method, 36)) for method in methods]


def check_recorded(
    tiny: Loaded, recorded: SimpleNamespace, names: Sequence[str], prompts: Sequence[list[int]], **how: str
) -> None:
    """Compare recorded steps of methods and plain rows with eager ones. All steps after the first few are replays."""
    variants = [("fullkv", None), *small(names), ("ada_snapkv", 36)]
    settings = {"stop_ids": [], "max_new_tokens": 9, "max_prompts": 2}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, prompts, variants, **settings)
    outs = recorded.generate(prompts, variants, **how, **settings)
    assert tokens(outs) == tokens(expected)
    assert [[(g.kept_max, g.read) for g in p] for p in outs] == [[(g.kept_max, g.read) for g in p] for p in expected]
    assert [batch.replayed for batch in recorded.batches] == [9 - 1 - graph._STEADY]


def test_rows_that_need_the_host_leave_and_stay(tiny: Loaded, recorded: SimpleNamespace) -> None:
    """Rows stop at different steps, those of the other methods too, and prompts join."""
    variants = [*VARIANTS, *small(["kivi", "quest", "corm", "snapkv+kivi+h2o_decode"])]
    settings = {"max_new_tokens": 24, "max_prompts": 2}
    free = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, variants, stop_ids=[], **settings)
    stops = {free[0][0].token_ids[9], free[1][-1].token_ids[13], free[2][1].token_ids[17]}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, variants, stop_ids=stops, **settings)
    outs = recorded.generate(variants=variants, stop_ids=stops, **settings)
    assert tokens(outs) == tokens(expected)
    assert recorded.batches[0].replayed > 0


def test_steps_in_which_several_tokens_leave_are_logged(
    tiny: Loaded, recorded: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """The buffer of the row that begins below its budget is full in one step, that of the other row in the next."""
    method = kvbench.load_method("h2o_decode", buffer=1)
    variants = [(method, 30), (method, len(PROMPTS[0]) + 1)]
    settings = {"stop_ids": [], "max_new_tokens": 20}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS[:1], variants, **settings)
    assert tokens(recorded.generate(PROMPTS[:1], variants, **settings)) == tokens(expected)
    assert recorded.batches[0].replayed == 0
    (line,) = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert line.startswith("decoding without CUDA graphs in this batch: in every step some row's policy drops several")


def test_a_step_that_cannot_be_recorded_is_eager(
    tiny: Loaded, recorded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = tiny.model.forward

    def waits(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        out.logits.max().item()
        return out

    settings = {"stop_ids": [], "max_new_tokens": 12}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS, VARIANTS, **settings)
    monkeypatch.setattr(tiny.model, "forward", waits)
    outs = recorded.generate(**settings)
    assert tokens(outs) == tokens(expected)
    assert [[g.kept_max for g in p] for p in outs] == [[g.kept_max for g in p] for p in expected]
    warnings = [r.message for r in caplog.records if "without CUDA graphs" in r.message]
    assert len(warnings) == 1 and "not permitted" in warnings[0]
    with pytest.raises(ValueError, match="engine.graph=true: operation not permitted"):
        recorded.generate(graph="true", **settings)


def test_the_cache_of_a_batch_is_freed_with_its_rows(
    tiny: Loaded, recorded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache and its graphs take gigabytes, which must not wait for the garbage collector."""
    caches = []
    real = RaggedCache.__init__

    def noted(self: RaggedCache, *arguments: Any) -> None:
        caches.append(weakref.ref(self))
        real(self, *arguments)

    checked_plan(tiny.model)  # the probe makes a cache of its own
    monkeypatch.setattr(RaggedCache, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        recorded.generate(PROMPTS[:1], stop_ids=[], max_new_tokens=8, steps=graph.GraphedSteps)
    finally:
        gc.enable()
    assert len(caches) == 1 and caches[0]() is None


def test_graph_true_without_a_gpu_is_refused(tiny: Loaded) -> None:
    cache = RaggedCache(num_layers(tiny.model))
    assert graph.recordable(tiny.model, cache, "auto") is graph.recordable(tiny.model, cache, "False") is None
    for choice in ("true", "True"):
        with pytest.raises(ValueError, match="engine.graph=true: CUDA graphs need a model on a GPU"):
            kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS[:1], VARIANTS, graph=choice)
    with pytest.raises(ValueError, match="engine.graph=on: must be one of auto, true, false"):
        kvbench.generate(tiny.model, tiny.tokenizer, PROMPTS[:1], VARIANTS, graph="on")


@pytest.mark.cuda
@pytest.mark.parametrize("odd", [[], TOGETHER])
@pytest.mark.parametrize("kernel", ["cuda", "flash_attn"])
def test_graphs_on_the_gpu(
    tiny: Loaded, kernel: str, odd: Sequence[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Recorded and eager steps run the same kernels and give the same tokens; rows that join are recorded again.

    Rows that need the host are left out of the graphs.
    """
    dims = dict.fromkeys(("hidden_size", "intermediate_size"), 256) | {"head_dim": 64}
    on_gpu = kvbench.load_model("tiny", device="cuda", dtype="bfloat16", dims=dict(DIMS) | dims)
    model, tokenizer = on_gpu.model, on_gpu.tokenizer
    settings = {"max_new_tokens": 48, "max_prompts": 2, "stop_ids": [], "kernel": kernel}
    variants = [*VARIANTS, *small(odd)]
    eager = kvbench.generate(model, tokenizer, PROMPTS, variants, graph="false", **settings)
    recorded: list[int] = []
    real = graph.CudaRecorder.__call__
    monkeypatch.setattr(graph.CudaRecorder, "__call__", lambda self, work: recorded.append(1) or real(self, work))
    outs = kvbench.generate(model, tokenizer, PROMPTS, variants, graph="true", **settings)
    assert tokens(outs) == tokens(eager)
    assert len(recorded) > 1 and not [r for r in caplog.records if "without CUDA graphs" in r.message]
