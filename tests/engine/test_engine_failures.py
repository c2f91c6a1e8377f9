"""Rows and requests that fail, and inputs in unusual forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

import kvbench
from kvbench.engine.decode import stream
from kvbench.engine.variant import Generation, Request
from kvbench.prompts import Prompt
from tests.helpers.tiny_engine import NEW, Tiny, generate, prompt, tiny_model, variants

POISON = 299  # an id whose embedding is no number


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


@pytest.fixture(scope="module")
def poisoned() -> Tiny:
    """A model that gives NaN after one id, like float16 after an overflow."""
    loaded = kvbench.load_model("tiny", seed=1)
    loaded.model.get_input_embeddings().weight.data[POISON] = torch.nan
    return loaded.model, loaded.tokenizer


def answers(tiny: Tiny, requests: Sequence[Request], **settings: Any) -> dict[Request, list[Generation]]:
    """Return what the engine streams for requests that may share a batch."""
    queue = list(reversed(requests))
    return dict(stream(*tiny, lambda _: queue.pop() if queue else None, **settings))


def request(ids: Sequence[int], *asked: Any) -> Request:
    text = Prompt(ids=tuple(ids), context_len=max(1, len(ids) - 5), stop_ids=frozenset(), text="")
    return Request.of(text, list(asked) or [kvbench.Variant(kvbench.load_method("fullkv"))], NEW)


def test_a_model_in_training_mode_is_refused() -> None:
    """Also after it was compared with the engine once. Dropout would change its answers at random."""
    config = GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=200, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    pair = model, tiny_model()[1]
    assert generate(pair, [prompt(40)], [("fullkv", None)])[0][0].token_ids
    model.train()
    with pytest.raises(ValueError, match=r"^model: it is in training mode.*call model\.eval\(\)$"):
        generate(pair, [prompt(40)], [("fullkv", None)])
    with pytest.raises(ValueError, match=r"call model\.eval\(\)$"), kvbench.compressed(model, "snapkv", 30):
        pass


def test_a_request_that_no_model_could_answer_is_refused(tiny: Tiny) -> None:
    for asked, message in (
        (Request((), NEW), "variants: give at least one"),
        (replace(request(prompt(20)), max_new_tokens=0), "max_new_tokens=0: must be at least 1"),
        (request(()), "prompts: one has no tokens"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            answers(tiny, [asked])


@pytest.mark.parametrize("cache", ["ragged", "masked"])
@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_a_prompt_without_finite_logits_fails_alone(poisoned: Tiny, question: str, cache: str) -> None:
    """With NaN in one prompt of a batch, every method answers the other prompts as it does without that prompt."""
    asked = variants(budgets=(70,))
    good = [request(prompt(length), *asked) for length in (120, 150)]
    bad = request([*prompt(60), POISON, *prompt(60)], *asked)
    settings = {"question": question, "cache": cache}
    expected = [answers(poisoned, [alone], **settings)[alone] for alone in good]
    outs = answers(poisoned, [good[0], bad, good[1]], **settings)
    assert [[g.token_ids for g in outs[neighbour]] for neighbour in good] == [
        [g.token_ids for g in row] for row in expected
    ]
    for generation in outs[bad]:
        assert (generation.finish_reason, generation.token_ids, generation.text) == ("failed", [], "")
        assert "token 1 are not finite" in str(generation.error) and "method=fullkv" in str(generation.error)
    for neighbour, alone in zip(good, expected, strict=True):  # some method may answer with the poison itself
        assert [generation.error for generation in outs[neighbour]] == [generation.error for generation in alone]
        assert sum(generation.error is None for generation in alone) > len(alone) // 2


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (torch.float16, "model.dtype=bfloat16 or float32"),
        (torch.bfloat16, "model.dtype=float32"),
        (torch.float32, "method=fullkv"),
    ],
)
def test_the_remedy_is_not_the_dtype_that_the_model_has(dtype: torch.dtype, remedy: str) -> None:
    loaded = kvbench.load_model("tiny", dtype=str(dtype).removeprefix("torch."))
    loaded.model.get_input_embeddings().weight.data[POISON] = torch.nan
    ((out,),) = generate((loaded.model, loaded.tokenizer), [[*prompt(20), POISON]], [("fullkv", None)])
    assert str(out.error).endswith(remedy)


def test_a_row_that_overflows_while_decoding_fails_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rows go on, and the failed row keeps its earlier tokens."""
    free = generate(tiny, [prompt(90, seed=s) for s in (1, 2)], [("fullkv", None)])
    calls = 0
    real = tiny[0].forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        out = real(*args, **kwargs)
        calls += 1
        if calls == 2 + 4:  # two prefills, then steps of both rows
            out.logits[0] = torch.nan
        return out

    monkeypatch.setattr(tiny[0], "forward", forward)
    (bad,), (good,) = generate(tiny, [prompt(90, seed=s) for s in (1, 2)], [("fullkv", None)], max_prompts=2)
    assert good.token_ids == free[1][0].token_ids and good.error is None
    assert bad.token_ids == free[0][0].token_ids[:4] and bad.finish_reason == "failed"
    assert "token 5 are not finite" in str(bad.error)
    assert bad.timings.tpot_s is not None and bad.kept_total > 0


@pytest.mark.parametrize("logits", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_a_finite_best_logit_fail(tiny: Tiny, logits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, infinity, and minus infinity for all tokens fail; minus infinity for some tokens is how models mask them."""
    real = tiny[0].forward
    some = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        out.logits[..., : 2 if some else None] = -torch.inf if some else logits
        return out

    monkeypatch.setattr(tiny[0], "forward", forward)
    ((out,),) = generate(tiny, [prompt(20)], [("fullkv", None)])
    assert out.finish_reason == "failed"
    some = True
    ((out,),) = generate(tiny, [prompt(20)], [("fullkv", None)])
    assert out.finish_reason == "length" and out.error is None


def test_a_request_that_does_not_fit_fails_alone(tiny: Tiny) -> None:
    """A sample that is too long must not end the others of a run."""
    good, bad = request(prompt(100)), request(prompt(150))
    outs = answers(tiny, [bad, good, bad], max_length=120)
    (generation,) = outs[bad]
    assert (generation.finish_reason, generation.kept, generation.kept_mean) == ("failed", [], 0)
    assert generation.error == (
        "a prompt of 150 tokens and max_new_tokens=12 need 161 positions, but model.max_length is 120; shorten the "
        "prompt"
    )
    assert outs[good][0].finish_reason == "length"
    assert answers(tiny, [bad], max_length=120)[bad][0].error == generation.error, "also when nothing else is there"


def test_learned_positions_cannot_be_exceeded(tiny: Tiny) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 300, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, bos_token_id=None, **sizes)).eval()
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 5):
        with pytest.raises(ValueError, match="does not pass keywords on"):
            generate((model, tiny[1]), [prompt(9)], [("fullkv", None)])
        return
    ((out,),) = generate((model, tiny[1]), [prompt(64 - NEW + 1)], [("fullkv", None)])
    assert len(out.token_ids) == NEW
    for settings in ({}, {"max_length": 1000}):
        with pytest.raises(ValueError, match=r"prompts\[1\]: .*the model has 64 positions; give max_new_tokens=11 at"):
            generate((model, tiny[1]), [prompt(9), prompt(64 - NEW + 2)], [("fullkv", None)], **settings)


def test_max_length_raises_the_limit_of_rotary_models(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="the model has 8192 positions"):
        generate(tiny, [prompt(8190)], [("fullkv", None)])
    with pytest.raises(ValueError, match="model.max_length is 100; give max_new_tokens=11 at most"):
        generate(tiny, [prompt(90)], [("fullkv", None)], max_length=100)


@pytest.mark.parametrize("budget", [np.int64(70), np.int32(70), np.float64(0.4), np.float32(0.4)])
def test_numpy_numbers_are_budgets(tiny: Tiny, budget: Any) -> None:
    plain = 70 if isinstance(budget, np.integer) else float(budget)
    expected = generate(tiny, [prompt(290)], [("snapkv", plain)])[0][0]
    for asked in (("snapkv", budget), kvbench.Variant(kvbench.load_method("snapkv"), budget)):
        out = generate(tiny, [prompt(290)], [asked])[0][0]
        assert (out.kept, out.token_ids) == (expected.kept, expected.token_ids)
    with kvbench.compressed(tiny[0], "snapkv", budget) as handle:
        tiny[0](torch.tensor([prompt(290)]))
        assert handle.cache is not None and handle.cache.kept == expected.kept


@pytest.mark.parametrize("budget", [True, "70", np.bool_(True), np.nan, torch.tensor(70.5)])
def test_other_budgets_are_refused(tiny: Tiny, budget: Any) -> None:
    with pytest.raises(ValueError, match="budget=") as refused:
        generate(tiny, [prompt(290)], [("snapkv", budget)])
    assert "\n" not in str(refused.value)


def forms(ids: list[int], tokenizer: Any) -> Iterator[tuple[str, Any]]:
    yield "tuple", tuple(ids)
    yield "tensor", torch.tensor(ids)
    yield "batch of one", torch.tensor([ids])
    yield "array", np.array(ids)
    yield "integers of numpy", list(np.array(ids))
    yield "encoding", {"input_ids": ids, "attention_mask": [1] * len(ids)}
    yield "encoding of tensors", {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
    padded = {"input_ids": torch.tensor([[0, 0, *ids]]), "attention_mask": torch.tensor([[0, 0] + [1] * len(ids)])}
    yield "padded encoding", padded


def test_prompts_of_many_forms(tiny: Tiny) -> None:
    ids = prompt(40)
    expected = generate(tiny, [ids], [("fullkv", None)])[0][0].token_ids
    for name, form in forms(ids, tiny[1]):
        assert generate(tiny, [form], [("fullkv", None)])[0][0].token_ids == expected, name


def test_batches_of_a_tokenizer_are_prompts(tiny: Tiny) -> None:
    texts = ["the end of the day", "in that year"]
    expected = [row[0].token_ids for row in generate(tiny, texts, [("fullkv", None)])]
    encoded = tiny[1](texts)
    for batch in (encoded, torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in encoded["input_ids"]], True)):
        if isinstance(batch, torch.Tensor):
            mask = [[1] * len(ids) + [0] * (batch.shape[1] - len(ids)) for ids in encoded["input_ids"]]
            batch = {"input_ids": batch, "attention_mask": torch.tensor(mask)}
        assert [row[0].token_ids for row in generate(tiny, batch, [("fullkv", None)])] == expected
    single = tiny[1](texts[0], return_tensors="pt")
    assert generate(tiny, single, [("fullkv", None)])[0][0].token_ids == expected[0]


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        ([], "prompts[1]: has no tokens"),
        (torch.zeros(0, dtype=torch.long), "prompts[1]: has no tokens"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "prompts[1]: has no tokens"),
        ([5, 320], "prompts[1]: token id 320 is not in the model's vocabulary of 320"),
        ([-1, 5], "prompts[1]: token id -1 is not in the model's vocabulary"),
        ([0.5, 2.0], "prompts[1]: must be text or integer token ids"),
        ([[5, 6], [7, 8]], "prompts[1]: must be text or integer token ids"),
        (["a", "b"], "prompts[1]: must be text or integer token ids"),
        (None, "prompts[1]: must be text or integer token ids"),
        (7, "prompts[1]: must be text or integer token ids"),
        ({"ids": [5]}, "prompts[1]: must be text or integer token ids"),
    ],
)
def test_an_impossible_prompt_is_refused_in_one_line(
    tiny: Tiny, ids: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tiny, [prompt(9)], [("fullkv", None)])
    monkeypatch.setattr(tiny[0], "forward", lambda *_, **__: pytest.fail("nothing may be computed"))
    with pytest.raises(ValueError) as refused:
        generate(tiny, [prompt(9), ids], [("fullkv", None)])
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_an_impossible_budget_is_found_before_the_first_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tiny, [prompt(9)], [("fullkv", None)])
    monkeypatch.setattr(tiny[0], "forward", lambda *_, **__: pytest.fail("nothing may be computed"))
    with pytest.raises(ValueError, match="always keeps 32 tokens"):
        generate(tiny, [prompt(290), prompt(60)], [("snapkv", 0.4)])
