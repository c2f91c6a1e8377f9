"""The view of a model that methods get: output projection and rotation; and inputs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kvbench
from kvbench.engine.attention import kvbench_attention, last_logits
from kvbench.engine.model_view import view_of
from kvbench.engine.survey import survey
from kvbench.methods.base import LayerContext, Score
from kvbench.methods.model_view import ModelView
from kvbench.methods.part_call import PartError
from kvbench.prompts import Prompt
from tests.engine.test_architectures import EXACT, OLD_VERSION, REFUSED_BY_OLD_VERSIONS, build
from tests.helpers.methods import with_parts
from tests.helpers.tiny_engine import generate, prompt, tiny_model

ROTATION = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    **EXACT,
    "llama, linear": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": ROTATION}, 4),
    "llama, yarn": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": YARN}, 4),
    "llama, llama3": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": LLAMA3}, 4),
    "llama, dynamic": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        4,
    ),
}
UNKNOWN = {"gpt2, learned positions", "opt, learned positions"}


class Layer:
    """The attention of a forward call that holds queries, keys and outputs of one layer."""

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self.q = self.k = self.out = torch.empty(0)

    def begin(self, ids_BT: Tensor) -> None:
        pass

    def finish(self) -> None:
        pass

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        out = v_BUTD.repeat_interleave(q_BHTD.shape[1] // v_BUTD.shape[1], 1)
        if layer == self._layer:
            self.q, self.k, self.out = q_BHTD[0], k_BUTD[0], out[0]
        return out


def run(model: Any, ids: Sequence[int], positions: Sequence[int], layer: int) -> Layer:
    held = Layer(layer)
    with torch.inference_mode(), kvbench_attention(model):
        last_logits(model, torch.tensor([list(ids)]), torch.tensor([list(positions)]), held)
    return held


# kvbench refuses some models on old versions of transformers, which tests/engine/test_architectures.py checks
BUILT = sorted(name for name in MODELS if not (OLD_VERSION and name in REFUSED_BY_OLD_VERSIONS))


@pytest.fixture(scope="module", params=BUILT)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    model_class, config_class, config, _ = MODELS[request.param]
    return request.param, build(model_class, config_class, config)


def test_rotations_are_those_of_the_model(named: tuple[str, Any]) -> None:
    """The keys of a text further on are the rotated keys of the text; back again, they are the first ones."""
    name, model = named
    ids, view, by = [7, 7, 7, 7], view_of(model, None), torch.tensor([0, 36, 0, 50])
    for place, layer in enumerate(survey(model).full):  # layers may differ
        before, after = run(model, ids, [3, 4, 5, 6], layer), run(model, ids, [3, 40, 5, 56], layer)
        if name in UNKNOWN:
            with pytest.raises(ValueError, match=rf"^model: {type(model).__name__} rotates its keys in a way that"):
                view.rotate(before.k, by, place)
            continue
        torch.testing.assert_close(view.rotate(before.k, by, place), after.k, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(view.rotate(before.q, by, place), after.q, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(view.rotate(after.k, -by, place), before.k, atol=2e-4, rtol=2e-4)
        half = view.rotate(before.k.bfloat16(), by, place)
        assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), after.k, atol=0.1, rtol=0.1)
        one_position = view.rotate(before.k, torch.tensor(9), place)
        assert one_position.shape == before.k.shape and bool(one_position.isfinite().all())


@pytest.mark.parametrize(
    ("name", "still"), [("smollm3", [3]), ("cohere2, no positions in full layers", [0]), ("gemma3", []), ("llama", [])]
)
def test_layers_without_positions_do_not_rotate(name: str, still: list[int]) -> None:
    """SmolLM3 has one in four. Gemma 3 has two bases, and its full layers have their own."""
    model = build(*MODELS[name][:3])
    view, x_UTD = view_of(model, None), torch.randn(2, 3, survey(model).head_dim)
    same = [bool((view.rotate(x_UTD, torch.tensor(9), layer) == x_UTD).all()) for layer in range(len(view.rotations))]
    assert [layer for layer, is_same in enumerate(same) if is_same] == still
    config = model.config.get_text_config()
    if name == "smollm3":
        assert [bool(rotates) for rotates in config.no_rope_layers] == [not is_same for is_same in same]


def test_the_output_projection_is_that_of_the_model(named: tuple[str, Any]) -> None:
    """The heads' outputs through [H, D, E] are what the attention module returns, but for its bias."""
    _, model = named
    plan = survey(model)
    place = len(plan.full) - 1
    module, outputs = plan.modules[plan.full[place]], []
    hook = module.register_forward_hook(lambda module, args, output: outputs.append(output[0][0]))
    held = run(model, [5, 9, 2], [0, 1, 2], plan.full[place])
    hook.remove()
    weight_HDE = view_of(model, None).o_proj(place)
    assert weight_HDE.shape[:2] == (plan.heads, plan.head_dim)
    ours_TE = torch.einsum("htd,hde->te", held.out, weight_HDE)
    difference_TE = outputs[0] - ours_TE
    bias_E = difference_TE.mean(0)
    torch.testing.assert_close(difference_TE, bias_E.expand_as(difference_TE), atol=1e-4, rtol=1e-4)


def test_a_projection_of_changed_outputs_is_refused() -> None:
    """BitNet normalises the heads' outputs first, so its projection does not say what a value becomes."""
    model = build("BitNetForCausalLM", "BitNetConfig", {})
    with pytest.raises(
        ValueError, match=r"^model: BitNetAttention of .* changes the heads' outputs before it projects"
    ):
        view_of(model, None).o_proj(0)
    with pytest.raises(ValueError, match="changes the heads' outputs"), kvbench.compressed(model, "critical", 40):
        model(torch.tensor([prompt(60)]))


def test_frequencies_of_long_texts_that_a_model_does_not_use_are_unknown() -> None:
    """PhiMoE always turns keys by its short factors; its module holds the long ones after a long text."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "short_mscale": 1.0, "long_mscale": 1.0}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    config = {"rope_parameters": rope, "sliding_window": None, "num_local_experts": 2, "num_experts_per_tok": 1}
    if not OLD_VERSION:  # there, transformers cannot compute PhiMoE with these factors
        model = build("PhimoeForCausalLM", "PhimoeConfig", config)
        assert set(view_of(model, None).rotations) == {None}
    phi3 = build("Phi3ForCausalLM", "Phi3Config", {"rope_parameters": rope, "pad_token_id": 0, "sliding_window": None})
    assert None not in view_of(phi3, None).rotations


def test_the_view_changes_nothing(named: tuple[str, Any]) -> None:
    _, model = named
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in model.named_modules()}
    view_of(model, None).o_proj(0)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert {n: len(m._forward_pre_hooks) + len(m._forward_hooks) for n, m in model.named_modules()} == hooks


class Coded(nn.Module):
    """A linear module as quantised ones are: no float weight, only a forward call. Most of them have no bias."""

    def __init__(self, linear: nn.Linear, has_bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Buffer(scale)
        self.bias = nn.Parameter(torch.ones(linear.out_features)) if has_bias else None
        self.got: list[tuple[torch.dtype, torch.device]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.got.append((x.dtype, x.device))
        return x @ (self.weight.to(x.device) * self.scale.to(x.device)).to(x.dtype).T + (0 if self.bias is None else 1)


class Scaled(nn.Linear):
    """A linear module of floats of 8 bits with scales, as FP8Linear of transformers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 448
        self.scale = nn.Buffer(scale)
        self.weight = nn.Parameter((linear.weight.detach() / scale).to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() * self.scale).T


@pytest.mark.parametrize("quantised", [Coded, Scaled, partial(Coded, has_bias=True)])
def test_a_quantised_projection_is_dequantised(quantised: Any) -> None:
    model = build(*EXACT["llama"][:3])
    attention = model.model.layers[2].self_attn
    plain = view_of(model, None).o_proj(2)
    attention.o_proj = quantised(attention.o_proj)
    decoded = view_of(model, None).o_proj(2)
    exact = (attention.o_proj.weight.float() * attention.o_proj.scale).T.view_as(plain)
    torch.testing.assert_close(decoded, exact, atol=1e-5, rtol=1e-5)
    assert 0 < (decoded - plain).abs().max().item() < 0.05


def test_a_quantised_projection_is_asked_where_it_lies_in_the_models_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own tensors may all be integers. "meta" stands for a GPU."""
    model = build(*EXACT["llama"][:3]).bfloat16()
    attention = model.model.layers[2].self_attn
    coded = attention.o_proj = Coded(attention.o_proj.float())
    coded.scale = coded.scale.to(torch.int8)
    assert view_of(model, None).o_proj(2).dtype == torch.bfloat16 and coded.got[0][0] == torch.bfloat16
    on_gpu = SimpleNamespace(is_meta=False, device=torch.device("meta"))
    monkeypatch.setattr(coded, "parameters", lambda: iter(()))
    monkeypatch.setattr(coded, "buffers", lambda: iter([on_gpu]))
    assert view_of(model, None).o_proj(2).is_meta and coded.got[-1] == (torch.bfloat16, torch.device("meta"))


def test_a_projection_that_a_hook_changes_is_read_with_the_change() -> None:
    model = build(*EXACT["llama"][:3])
    plain = view_of(model, None).o_proj(2)
    model.model.layers[2].self_attn.o_proj.register_forward_hook(lambda module, args, out: 2 * out)
    torch.testing.assert_close(view_of(model, None).o_proj(2), 2 * plain)


def test_a_model_without_an_output_projection_is_refused_by_name() -> None:
    model = build(*EXACT["llama"][:3])
    view = view_of(model, None)
    model.model.layers[0].self_attn.o_proj = nn.Linear(10, 64)
    message = "^model: LlamaAttention of LlamaForCausalLM has no output projection"
    with pytest.raises(ValueError, match=message) as caught:
        view.o_proj(0)
    assert "\n" not in str(caught.value)


@dataclass
class Seen:
    """The facts that a score part got, one entry per layer."""

    facts: list[tuple[Any, ...]] = field(default_factory=list)


def recording(seen: Seen) -> Score:
    @dataclass(frozen=True)
    class Recording(Score):
        draws = True

        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"model", "hidden", "token_ids", "spans"})

        def __call__(self, ctx: LayerContext) -> Tensor:
            assert ctx.token_ids is not None and ctx.hidden_TE is not None and isinstance(ctx.model, object)
            view: ModelView | None = ctx.model
            assert view is not None
            drawn = torch.rand(3, generator=ctx.generator(self)).tolist()
            ids, hidden = ctx.token_ids.tolist(), ctx.hidden_TE.clone()
            seen.facts.append((ctx.layer, ids, dict(ctx.spans), hidden, view.o_proj(ctx.layer).sum().item(), drawn))
            return ctx.k.norm(dim=-1)

    return Recording()


def test_the_engine_and_compressed_give_the_same_facts() -> None:
    """A part sees the same prompt in both, alone and with other variants, and the layers' own inputs."""
    model, tokenizer = tiny_model()
    seen = Seen()
    own = with_parts(kvbench.load_method("snapkv", window=8), score=recording(seen))
    ids = prompt(90)
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0])) for layer in model.model.layers]
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    runs = []
    asked = [kvbench.Variant(own, 40)]
    other = kvbench.Variant(kvbench.load_method("h2o"), 40)
    for variants in (asked, [other, *asked]):
        generate((model, tokenizer), [ids], variants, max_new_tokens=2)
        runs.append(seen.facts)
        seen.facts = []
    with kvbench.compressed(model, own, 40, tokenizer=tokenizer):
        model(torch.tensor([ids]))
    runs.append(seen.facts)
    for facts in runs:
        assert [fact[0] for fact in facts] == [0, 1, 2, 3]
        for layer, token_ids, spans, hidden, projection, drawn in facts:
            first = runs[0][layer]
            assert token_ids == ids and spans == {"template": (0, 0), "context": (0, 90), "question": (90, 90)}
            torch.testing.assert_close(hidden, inputs[layer], atol=1e-4, rtol=1e-4)
            assert (projection, drawn) == (first[4], first[5])
    assert len({tuple(fact[5]) for fact in runs[0]}) == 4, "each layer draws numbers of its own"
    assert not any(m._forward_pre_hooks for m in model.modules()), "no hook stays"


def test_spans_are_cut_to_what_is_compressed() -> None:
    model, tokenizer = tiny_model()
    seen = Seen()
    own = with_parts(kvbench.load_method("snapkv", window=8), score=recording(seen))
    text = Prompt(ids=tuple(prompt(90)), context_len=70, stop_ids=frozenset(), text="")
    for question, spans in (
        ("aware", {"template": (0, 0), "context": (0, 70), "question": (70, 90)}),
        ("agnostic", {"template": (0, 0), "context": (0, 70), "question": (70, 70)}),
    ):
        seen.facts = []
        generate((model, tokenizer), [text], [(own, 40)], max_new_tokens=2, question=question)
        assert {tuple(sorted(fact[2].items())) for fact in seen.facts} == {tuple(sorted(spans.items()))}


def test_random_numbers_follow_seed_sample_and_part() -> None:
    model, tokenizer = tiny_model()
    drawn = []
    for seed, ids in ((0, prompt(90)), (0, prompt(90)), (1, prompt(90)), (0, prompt(90, seed=5))):
        seen = Seen()
        own = with_parts(kvbench.load_method("snapkv", window=8), score=recording(seen))
        generate((model, tokenizer), [ids], [(own, 40)], max_new_tokens=1, seed=seed)
        drawn.append([fact[5] for fact in seen.facts])
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] and drawn[0] != drawn[3]


def test_no_hook_stays_if_a_prefill_fails() -> None:
    model, tokenizer = tiny_model()

    @dataclass(frozen=True)
    class Failing(Score):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"hidden"})

        def __call__(self, ctx: LayerContext) -> Tensor:
            raise RuntimeError("no score")

    own = with_parts(kvbench.load_method("snapkv", window=8), score=Failing())
    with pytest.raises(PartError, match="no score"):
        generate((model, tokenizer), [prompt(90)], [(own, 40)])
    with pytest.raises(PartError, match="no score"), kvbench.compressed(model, own, 40):
        model(torch.tensor([prompt(90)]))
    assert not any(m._forward_pre_hooks for m in model.modules())
