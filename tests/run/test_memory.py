"""The estimates against what the engine really allocates, and what they let decode together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

import kvbench
from kvbench import models
from kvbench.cache.ragged import RaggedCache
from kvbench.config import defaults, options
from kvbench.engine import decode
from kvbench.engine.caches import LayerCaches, num_layers
from kvbench.engine.variant import Request, span_tokens
from kvbench.models.sources import hub
from kvbench.prompts import Prompt
from kvbench.run import memory
from tests.engine.test_architectures import EXACT, build
from tests.helpers.methods import budget_for, load, measured, shipped
from tests.helpers.model_specs import node

NODE = OmegaConf.to_container(defaults("model", "tiny"))


def prompt(length: int, context: int | None = None) -> Prompt:
    ids = torch.randint(3, 260, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return Prompt(ids=tuple(ids), context_len=context or length, stop_ids=frozenset(), text="")


def request(length: int, *variants: tuple[str, float | int | None], new: int = 8) -> Request:
    asked = [kvbench.Variant(load(name), budget) for name, budget in variants]
    return Request.of(prompt(length), asked, new)


@pytest.fixture(scope="module")
def tiny() -> models.Loaded:
    return kvbench.load_model("tiny")


def test_a_shape_is_that_of_the_loaded_model(tiny: models.Loaded) -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    config = tiny.model.config
    assert shape.weight_bytes == sum(p.numel() * p.element_size() for p in tiny.model.parameters())
    assert (shape.layers, shape.heads, shape.kv_heads) == (4, config.num_attention_heads, config.num_key_value_heads)
    assert shape.token_bytes == 4 * 2 * 2 * 32 * 4
    half = models.shape(models.ModelSpec.from_node(NODE | {"dtype": "bfloat16"}))
    assert 2 * half.weight_bytes == shape.weight_bytes and 2 * half.token_bytes == shape.token_bytes


@pytest.mark.smollm2
def test_the_embedded_models_shape() -> None:
    shape = models.shape(models.ModelSpec.from_node(OmegaConf.to_container(defaults("model", "smollm2_135m"))))
    assert shape.weight_bytes == 134_515_008 * 4, "the embedding is tied"
    assert shape.token_bytes == 30 * 3 * 2 * 64 * 4


STORES = sorted(name for name, method in shipped().items() if method.store is not None)
BASES = ("snapkv", "ada_snapkv", "pyramidkv", "h2o_decode")


def peak_bytes(tiny: models.Loaded, asked: Request, monkeypatch: pytest.MonkeyPatch, question: str = "aware") -> int:
    """Return the most bytes that the rows of a request allocate after an attention call."""
    peak = 0

    def make(model: Any, cache: str, kernel: str) -> RaggedCache:
        return RaggedCache(num_layers(model))

    real = RaggedCache.attend

    def attend(self: RaggedCache, *args: Any) -> torch.Tensor:
        nonlocal peak
        out = real(self, *args)
        peak = max(peak, self.bytes())
        return out

    monkeypatch.setattr(decode, "make_cache", make)
    monkeypatch.setattr(RaggedCache, "attend", attend)
    queue = [asked]
    list(decode.stream(tiny.model, tiny.tokenizer, lambda _: queue.pop() if queue else None, question=question))
    return peak


def check_bound(
    tiny: models.Loaded,
    asked: Request,
    monkeypatch: pytest.MonkeyPatch,
    question: str = "aware",
    close: float = 1.35,
) -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    estimate = memory.cache_bytes(shape, asked, span_tokens(asked.prompts[0], question))
    peak = peak_bytes(tiny, asked, monkeypatch, question)
    assert 0 < peak <= estimate <= close * peak


def cases() -> list[tuple[str, float | str | None]]:
    """Return every method, and stores on methods that drop tokens, with budgets of each kind that they take."""
    names = [*sorted(options("method")), *(f"{base}+{store}" for base in BASES for store in STORES)]
    shares: list[tuple[str, float | str | None]] = [(name, budget_for(load(name), 0.3)) for name in names]
    return [*shares, *((name, "0.3B") for name in names if "+" in name)]


@pytest.mark.parametrize(("method", "budget"), cases())
def test_the_cache_estimate_is_a_close_upper_bound(
    tiny: models.Loaded, method: str, budget: float | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is on what rows allocate at their fullest. A method that takes no budget might keep every token."""
    close = 2.0 if method in measured() else 1.35
    check_bound(tiny, request(600, (method, budget), new=20), monkeypatch, close=close)


@pytest.mark.parametrize("page", [1, 2, 16])
def test_the_cache_estimate_counts_what_a_look_keeps_of_its_blocks(
    tiny: models.Loaded, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = kvbench.Variant(kvbench.load_method("quest", page=page), 100)
    check_bound(tiny, Request.of(prompt(300), [variant], 20), monkeypatch)


@pytest.mark.parametrize("method", ["kivi", "snapkv+kivi", "h2o_decode+think", "ada_snapkv+qaq", "quest"])
def test_the_cache_estimate_counts_questions_and_long_answers(
    tiny: models.Loaded, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question is appended at once, and tokens of the answer are encoded or leave while it grows."""
    variant = kvbench.Variant(load(method), budget_for(load(method), 0.5))
    check_bound(tiny, Request.of(prompt(500, context=400), [variant], 60), monkeypatch, "agnostic", close=2.0)


@pytest.mark.parametrize("dials", [{"bits": 8}, {"residual": 32}, {"group_size": 8}])
def test_the_cache_estimate_follows_the_dials_of_a_store(
    tiny: models.Loaded, dials: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = kvbench.Variant(kvbench.load_method("kivi", **dials))
    check_bound(tiny, Request.of(prompt(400), [variant], 20), monkeypatch)


WINDOWED = {"gemma3": 3, "llama4, chunks": 3, "qwen2, upper layers slide": 2, "llama": 0}  # layers with a window


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("lengths", [(6, 6), (7, 120), (30, 14)])
@pytest.mark.parametrize("window", [16, 64])
def test_layers_with_a_window_are_estimated_by_their_window(
    name: str, lengths: tuple[int, int], window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep it for every row, whatever the budget, and no more than the longest row needs."""
    model_class, config_class, config, _ = EXACT[name]
    own = {key: window for key in config if key in ("sliding_window", "attention_chunk_size")}
    model = build(model_class, config_class, config | own)
    model.save_pretrained(tmp_path / "model")
    spec = models.ModelSpec.from_node(node("local", path=str(tmp_path / "model"), device="cpu"))
    shape = models.shape(spec)
    assert (shape.local_layers, shape.window) == (WINDOWED[name], window if WINDOWED[name] else 0)
    assert shape.compressed_layers == num_layers(model)
    peak = 0
    real = LayerCaches.attend

    def attend(self: LayerCaches, *args: Any) -> torch.Tensor:
        nonlocal peak
        out = real(self, *args)
        held = [layer._kv for layer in self.local.values() if layer._kv is not None]
        peak = max(peak, sum(k.nbytes + v.nbytes for k, v in held))
        return out

    monkeypatch.setattr(LayerCaches, "attend", attend)
    requests = [request(length, ("streaming_llm", 5), ("fullkv", None)) for length in lengths]
    queue = list(requests)
    list(decode.stream(model, kvbench.load_model("tiny").tokenizer, lambda _: queue.pop() if queue else None))
    local = memory.local_bytes(shape, requests)
    assert peak <= local <= 1.5 * peak and (peak > 0) == (WINDOWED[name] > 0)
    limits = memory.Limits(max_rows=9, max_prompts=9, free=0, shape=shape, question="aware")
    assert limits.total(requests) >= sum(memory.cache_bytes(shape, r, len(r.prompts[0].ids)) for r in requests) + local


def test_quantised_weights_are_as_large_as_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are unknown as long as a model of the hub has config.json alone."""
    build(*EXACT["llama"][:3]).half().save_pretrained(tmp_path)
    spec = models.ModelSpec.from_node(node("local", path=str(tmp_path), device="cpu", dtype="float32"))
    plain = models.shape(spec).weight_bytes
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    assert models.shape(spec).weight_bytes == (tmp_path / "model.safetensors").stat().st_size < 0.6 * plain
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(hub.Source, "_config_json", lambda self: tmp_path / "config.json")
    monkeypatch.setattr(hub.Source, "config", lambda self: AutoConfig.from_pretrained(tmp_path))
    on_hub = models.ModelSpec.from_node(node("llama31_8b", device="cpu"))
    assert models.shape(on_hub).weight_bytes == 0


def test_what_may_decode_together() -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    single = request(400, ("snapkv", 100))
    two = request(400, ("snapkv", 100), ("h2o", 100))

    def limits(rows: int = 10, prompts: int = 10, free: int = 2**40) -> memory.Limits:
        return memory.Limits(max_rows=rows, max_prompts=prompts, free=free, shape=shape, question="aware")

    assert limits()([single], two)
    assert limits(rows=3)([single], two) and not limits(rows=2)([single], two)
    assert limits(prompts=2)([single], two) and not limits(prompts=1)([single], two)
    both = limits().total([single, two])
    assert limits(free=both)([single], two) and not limits(free=both - 1)([single], two)
    assert both < limits().total([single]) + limits().total([two]), "their prompts are prefilled one after the other"


def test_a_prompt_with_too_many_rows_goes_in_parts() -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    many = request(400, *[("snapkv", 50 + i) for i in range(9)])
    limits = memory.Limits(max_rows=4, max_prompts=8, free=2**40, shape=shape, question="aware")
    assert len(limits.part(many).rows) == 3
    assert limits.part(many).rows == many.rows[:3]
    nothing = memory.Limits(max_rows=4, max_prompts=8, free=0, shape=shape, question="aware")
    assert len(nothing.part(many).rows) == 1


def test_scores_are_estimated_by_what_the_score_holds() -> None:
    """The score part is asked, whatever its dials are called."""
    shape = models.shape(models.ModelSpec.from_node(NODE))

    def prefill(name: str, **dials: Any) -> int:
        variant = kvbench.Variant(kvbench.load_method(name, **dials), 100)
        return memory.prefill_bytes(shape, Request.of(prompt(400), [variant], 8), 400)

    per_query = 4 * 400 * 2 * shape.heads
    assert prefill("snapkv", window=40) - prefill("snapkv", window=8) == 32 * per_query
    assert prefill("h2o") - prefill("streaming_llm") == 63 * per_query, "a block of 64 queries against none"
    for name, dials in (("csp", {}), ("fastgen", {"phase": "prefill"}), ("fastgen_element", {})):
        assert prefill(name, **dials) == prefill("h2o"), "a selection, too, and a score that has regions"
    assert prefill("qaq", last=200) - prefill("qaq", last=8) == 192 * per_query, "and a store"
    assert prefill("qaq", last=4096) == prefill("qaq", last=400), "a prompt has no more queries than tokens"


def test_an_agnostic_prompt_counts_its_question() -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    asked = Request.of(prompt(500, context=400), [kvbench.Variant(kvbench.load_method("snapkv"), 100)], 10)
    assert memory.cache_bytes(shape, asked, 400) == (100 + 110 + (210 // 8)) * shape.token_bytes


def test_questions_of_equal_length_are_one_pass() -> None:
    """Their tokens count together. Those of another length are another pass, so the largest pass counts."""
    shape = models.shape(models.ModelSpec.from_node(NODE))
    variant = kvbench.Variant(kvbench.load_method("streaming_llm"), 20)

    def prefill(*questions: int) -> int:
        rows = [(prompt(40 + tokens, context=40), variant) for tokens in questions]
        return memory.prefill_bytes(shape, Request(rows, 8), 40)

    largest = prefill(200)
    assert largest > 4 * prefill(1), "the context is small next to it"
    assert prefill(*[200] * 7) == 7 * largest
    assert prefill(200, 150, 100) == largest and prefill(150, 150, 200) * 2 == 3 * largest


def test_bytes_that_are_known_late_need_all_layers() -> None:
    """Keys and values of every layer wait for the end of the prompt where a budget in bytes depends on the scores."""
    shape = models.shape(models.ModelSpec.from_node(NODE))

    def prefill(name: str, budget: float | str) -> int:
        asked = Request.of(prompt(400), [kvbench.Variant(load(name), budget)], 8)
        return memory.prefill_bytes(shape, asked, 400)

    assert prefill("ada_snapkv+kivi", "0.3B") - prefill("ada_snapkv+kivi", 0.3) == 400 * shape.token_bytes
    assert prefill("snapkv", "0.3B") == prefill("snapkv", 0.3), "a plain cache's bytes are known before"


def test_one_layer_of_the_larger_kind_moves_at_a_time() -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    mixed = replace(shape, local_layers=2)  # of four
    assert memory.moved_bytes(mixed, 800, 1000) == 500 and memory.moved_bytes(mixed, 8000, 1000) == 4000
    assert memory.moved_bytes(shape, 800, 0) == 200


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/slurm/job_1", "slurm/job_1", ("memory.max", "memory.current", "inactive_file")),
        ("5:memory:/a", "memory/a", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_free_memory_heeds_the_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, folder: str, names: tuple[str, str, str]
) -> None:
    """Groups of both versions count, and those of folders above. File pages can be dropped and count as free."""
    (tmp_path / "proc").write_text(f"3:cpu:/x\n{line}\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    system = memory.free_bytes("cpu")
    assert system > 2**20
    for where in ((tmp_path / "groups" / folder), (tmp_path / "groups" / folder).parent):
        where.mkdir(parents=True, exist_ok=True)
        for name, text in zip((names[0], names[1], "memory.stat"), ("5000000", "1000000", "x 1"), strict=True):
            (where / name).write_text(text + "\n")
        assert memory.free_bytes("cpu") == 4_000_000
        (where / "memory.stat").write_text(f"anon 7\n{names[2]} 600000\n")
        assert memory.free_bytes("cpu") == 4_600_000
        (where / names[0]).write_text("max\n" if "max" in names[0] else "9223372036854771712\n")
        assert memory.free_bytes("cpu") > 2**22


def test_a_masked_cache_counts_every_token() -> None:
    shape = models.shape(models.ModelSpec.from_node(NODE))
    asked = request(400, ("snapkv", 100))
    assert memory.cache_bytes(shape, asked, 400, masked=True) == (408 + 408 // 8) * shape.token_bytes


def test_the_preflight_says_what_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compose: Callable[..., DictConfig]
) -> None:
    """Before weights are loaded, and with a warning where it may be too much."""
    from kvbench.run import runner
    from kvbench.run.jobs import prepare

    grid = ["model=tiny", "benchmark.lengths=[300]", "benchmark.depths=[0]", "benchmark.max_new_tokens=4"]
    with caplog.at_level(logging.INFO):
        runner.run_jobs(prepare(compose(*grid, "budget=100", f"paths.outputs={tmp_path}", "progress=false")))
    line = next(r.getMessage() for r in caplog.records if "memory: weights" in r.getMessage())
    assert "1 row(s) of 1 sample(s) to compute" in line and "1 of 1 row(s) at once" in line
    assert "more than there is" not in caplog.text
