"""Forward passes of a method's own: once per context, paid by their variants alone, and without a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import kvbench
from kvbench.common.paths import conf_dir
from kvbench.engine.model_view import view_of
from kvbench.engine.passes import ProbeRunner
from kvbench.methods.load import load
from kvbench.methods.probe.repeat import Repeat
from kvbench.prompts import Prompt
from tests.engine.test_lengths import SIZES, TRAINED, scaled
from tests.engine.test_questions import calls, questions
from tests.helpers.stopped_clock import StoppedClock
from tests.helpers.tiny_engine import Tiny, generate, own_answer, prompt, tiny_model


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def kvzip(chunk: int = 64, **dials: Any) -> Any:
    return kvbench.load_method("kvzip", chunk=chunk, **dials)


def test_three_budgets_share_one_prefill_and_one_set_of_passes(tiny: Tiny) -> None:
    """146 tokens follow the sinks: that is three passes of 64, whatever the number of budgets and questions."""
    asked = questions(150, (5, 9, 5))
    budgets = [("snapkv", 70), *[(kvzip(), budget) for budget in (40, 70, 0.8)]]
    generate(tiny, asked[:1], budgets, question="agnostic")  # what runs once per process is not counted
    with calls(tiny[0]) as shapes:
        together = generate(tiny, asked, budgets, question="agnostic")
    probe = Repeat(chunk=64)
    lengths = [len(ids) for ids, _ in probe.passes(asked[0].ids[:150], view_of(*tiny))]
    assert shapes[:4] == [(1, 150), *((1, length) for length in lengths)] and len(lengths) == 3
    assert [tokens for rows, tokens in shapes[4:] if tokens > 1] == [5, 9], "only questions follow"
    for question, of_question in zip(asked, together, strict=True):
        for variant, out in zip(budgets, of_question, strict=True):
            ((alone,),) = generate(tiny, [question], [variant], question="agnostic")
            assert (alone.token_ids, alone.kept) == (out.token_ids, out.kept)


def test_the_template_of_a_prompt_is_protected(tiny: Tiny) -> None:
    """It is not repeated, and stays in every head. Without it the passes are longer."""
    ids, begins = prompt(150), []

    class Watched(Repeat):
        def observe(self, before: Any, ctx: Any, q: Any, k: Any, about: Any) -> Any:
            begins.append(about.begin)
            after = super().observe(before, ctx, q, k, about)
            assert bool((after[:, : about.begin] == 0).all()) and bool((after[:, about.begin :] > 0).any())
            return after

    probe, method = Watched(chunk=1000), kvzip()
    eviction = replace(method.eviction, score=replace(method.eviction.score, probe=probe))
    watched = replace(method, probe=probe, eviction=eviction)
    templated = Prompt(tuple(ids), 140, frozenset(), "", template_len=33)
    least = []
    for asked in (templated, replace(templated, template_len=0)):
        ((out,),) = generate(tiny, [asked], [(watched, 40)], question="agnostic", max_new_tokens=2)
        least.append(min(map(min, out.kept)))
    assert set(begins[: len(begins) // 2]) == {33} and set(begins[len(begins) // 2 :]) == {4}
    assert least[0] >= 33 and least[1] >= 4


@pytest.mark.parametrize("budget", [33, 0.23])
def test_a_budget_without_room_next_to_the_template_is_one_line(tiny: Tiny, budget: int | float) -> None:
    asked = Prompt(tuple(prompt(150)), 140, frozenset(), "", template_len=33)
    with pytest.raises(ValueError, match=rf"^budget={budget}.*: kvzip always keeps 33 tokens \(its chat template\)"):
        generate(tiny, [asked], [(kvzip(), budget)], question="agnostic", max_new_tokens=2)
    generate(tiny, [replace(asked, template_len=31)], [(kvzip(), budget)], question="agnostic", max_new_tokens=2)


def test_different_probes_run_each(tiny: Tiny) -> None:
    with calls(tiny[0]) as shapes:
        generate(tiny, [prompt(150)], [(kvzip(64), 70), (kvzip(1000), 70), (kvzip(1000), 40)])
    assert len([tokens for _, tokens in shapes if tokens > 1]) == 1 + 3 + 1


def test_a_budget_that_drops_nothing_runs_no_pass(tiny: Tiny) -> None:
    with calls(tiny[0]) as shapes:
        generate(tiny, [prompt(150)], [(kvzip(), 150)])
    assert len([tokens for _, tokens in shapes if tokens > 1]) == 1


def test_passes_are_paid_by_their_variants_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variant pays for all of its passes, as if it were alone; the others pay nothing."""
    real, clock = ProbeRunner.__call__, StoppedClock(monkeypatch)

    def slow(self: ProbeRunner, *args: Any) -> None:
        real(self, *args)
        clock.seconds += 1

    monkeypatch.setattr(ProbeRunner, "__call__", slow)
    (outs,) = generate(tiny, [prompt(150)], [("snapkv", 70), (kvzip(), 70), (kvzip(), 40), ("fullkv", None)])
    assert [out.timings.compress_s for out in outs] == [0, 1, 1, 0]
    assert [out.timings.ttft_s for out in outs] == [0, 1, 1, 0]
    assert {out.timings.prefill_s for out in outs} == {0}


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_passes_leave_nothing_behind(kind: str) -> None:
    """A variant without passes answers as it does alone, also if frequencies depend on the length of a text."""
    asked, ids = [("fullkv", None), ("snapkv", 50)], prompt(TRAINED + 20, seed=1)
    (alone,) = generate((scaled(kind), tiny_model()[1]), [ids], asked)
    (together,) = generate((scaled(kind), tiny_model()[1]), [ids], [(kvzip(), 50), *asked])
    assert [out.token_ids for out in together[1:]] == [out.token_ids for out in alone]
    assert alone[0].token_ids == own_answer(scaled(kind), ids)


def test_a_pass_sees_what_an_appended_text_would_see() -> None:
    """Layers with a window included: queries and keys of a pass are those of one forward call over both texts."""
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": 3, "head_dim": 16}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window=24, layer_types=kinds)).eval()
    seen: list[torch.Tensor] = []

    class Watched(Repeat):
        def observe(self, before: Any, ctx: Any, q: Any, k: Any, about: Any) -> Any:
            seen.append(torch.cat([ctx.k, k], 1))
            return super().observe(before, ctx, q, k, about)

    probe, method = Watched(chunk=1000), kvzip()
    eviction = replace(method.eviction, score=replace(method.eviction.score, probe=probe))
    ids, tokenizer = prompt(90, seed=3), tiny_model()[1]
    generate((model, tokenizer), [ids], [(replace(method, probe=probe, eviction=eviction), 30)])
    ((text, _),) = probe.passes(ids, view_of(model, tokenizer))
    cache = model(torch.tensor([[*ids, *text]]), use_cache=True).past_key_values
    torch.testing.assert_close(seen[-1], cache.layers[1].keys[0], rtol=1e-4, atol=1e-4)


def test_compressed_runs_passes_too(tiny: Tiny) -> None:
    ids, model = prompt(150), tiny[0]
    ((expected,),) = generate(tiny, [ids], [(kvzip(), 0.4)])
    with kvbench.compressed(model, kvzip(), 0.4, tokenizer=tiny[1]) as handle:
        assert own_answer(model, ids) == expected.token_ids
        assert handle.cache is not None and [sum(heads) for heads in handle.cache.kept][:1] != [0]
    with (
        pytest.raises(ValueError, match="give kvbench.compressed\\(..., tokenizer=...\\)"),
        kvbench.compressed(model, kvzip(), 0.4),
    ):
        own_answer(model, ids)


def test_passes_beyond_the_models_positions_fail_alone(tiny: Tiny) -> None:
    """Other variants get their answers. A budget that keeps everything needs no pass, and no room for one."""
    settings: dict[str, Any] = {"max_length": 200}
    asked = [("snapkv", 70), (kvzip(), 70), (kvzip(), 150)]
    (outs,) = generate(tiny, [prompt(150)], asked, **settings)
    assert [out.error is None for out in outs] == [True, False, True]
    assert "method=kvzip: it reads" in str(outs[1].error) and "model.max_length is 200" in str(outs[1].error)
    (outs,) = generate((scaled("longrope"), tiny[1]), [prompt(TRAINED - 20)], asked[:2])
    assert [out.error is None for out in outs] == [True, False] and "longrope" in str(outs[1].error)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_questions_of_different_lengths_do_not_share_frequencies(kind: str) -> None:
    """Each length is a batch of its own, because frequencies follow from a batch's longest row."""
    tiny = scaled(kind), tiny_model()[1]
    asked = questions(TRAINED + 10, (5, 40, 5, 12))
    settings: dict[str, Any] = {"question": "agnostic"}
    with calls(tiny[0]) as shapes:
        together = generate(tiny, asked, [("snapkv", 50), ("fullkv", None)], **settings)
    assert len([tokens for _, tokens in shapes if tokens == TRAINED + 10]) == 3
    for question, of_question in zip(asked, together, strict=True):
        (alone,) = generate(tiny, [question], [("snapkv", 50), ("fullkv", None)], **settings)
        assert [out.token_ids for out in of_question] == [out.token_ids for out in alone]


def test_a_probe_and_its_reader_need_each_other(tmp_path: Path) -> None:
    repeat, probed = "kvbench.methods.probe.repeat.Repeat", "kvbench.methods.scores.probed.Probed"
    rest = OmegaConf.load(conf_dir() / "method" / "streaming_llm.yaml")
    for name, parts, line in (
        ("unread", {"probe": {"_target_": repeat}}, "no part reads what probe finds"),
        ("absent", {"score": {"_target_": probed, "probe": {"_target_": repeat}}}, "add probe"),
    ):
        OmegaConf.save(OmegaConf.merge(rest, {"name": name}, parts), tmp_path / f"{name}.yaml")
        with pytest.raises(ValueError, match=f"method={name}: .*{line}"):
            load(tmp_path, name)
