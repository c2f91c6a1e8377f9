"""Fused decode steps give the tokens of the model's own layers, and models that they do not fit keep their own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.profiler import profile

import kvbench
from kvbench.engine import fused, walk
from kvbench.engine.probe import checked_plan, step_error
from kvbench.engine.products import Products
from kvbench_kernels import build, ops
from tests.helpers.tiny_engine import prompt, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, a head dimension of its own": ("Llama", {"head_dim": 32}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, a window": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen2, upper layers slide": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}
VARIANTS = [("fullkv", None), (kvbench.load_method("snapkv", window=8), 30), ("ada_snapkv", 40)]
SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "stop_ids": [], "max_prompts": 2}


def model_of(family: str, **extra: Any) -> Any:
    """Return a model with random weights, those of norms and biases too."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | extra)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1, 0.3)
    return model


def answers(model: Any, **settings: Any) -> list[list[kvbench.Generation]]:
    tokenizer = tiny_model()[1]
    return kvbench.generate(model, tokenizer, [prompt(50), prompt(41, 1)], VARIANTS, **SETTINGS | settings)


def tokens(outs: list[list[kvbench.Generation]]) -> list[list[int]]:
    return [out.token_ids for of_prompt in outs for out in of_prompt]


@pytest.mark.parametrize("name", MODELS)
def test_the_tokens_are_those_of_the_models_own_layers(name: str) -> None:
    """The logits too are equal, and stay so for the model's own layers after the weights have moved in memory."""
    family, extra = MODELS[name]
    model = model_of(family, **extra)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = answers(model, fused="false")
    ours = answers(model, fused="true")
    assert tokens(ours) == tokens(own) == tokens(answers(model, fused="false"))
    assert {out.decode_step for of_prompt in ours for out in of_prompt} == {"fused"}
    assert {out.decode_step for of_prompt in own for out in of_prompt} == {"transformers"}
    assert step_error(model, checked_plan(model), walk.FusedStep(model)) < 1e-5  # with the small ops in torch
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_weights_of_one_product_share_memory_and_are_joined_once() -> None:
    model = model_of("Qwen2")
    walk.FusedStep(model)
    attn = model.model.layers[0].self_attn
    places = [getattr(attn, name).weight.data_ptr() for name in ("q_proj", "k_proj", "v_proj")]
    assert places[1] == places[0] + attn.q_proj.weight.nbytes and places[2] == places[1] + attn.k_proj.weight.nbytes
    walk.FusedStep(model)
    assert [getattr(attn, name).weight.data_ptr() for name in ("q_proj", "k_proj", "v_proj")] == places
    total = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())
    assert total == sum(p.nbytes for p in model.parameters())


def test_changed_weights_count() -> None:
    """Weights that are replaced after a first answer, as `model.to` does it, are those of the next answer."""
    model = model_of("Llama")
    first = answers(model, fused="true")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.data = layer.self_attn.v_proj.weight.flip(0).contiguous()
    own = answers(model, fused="false")
    assert tokens(answers(model, fused="true")) == tokens(own) != tokens(first)


@pytest.mark.gxx
@pytest.mark.parametrize("name", ["llama, tied", "llama, biases", "qwen2"])
@torch.no_grad()
def test_products_of_our_own_kernel_give_the_models_logits(name: str) -> None:
    """The kernels run in the emulator; 16 rows or fewer are theirs, and more are torch's."""
    family, extra = MODELS[name]
    model = model_of(family, **extra).bfloat16()
    with ops.emulated(build.host()):
        assert step_error(model, checked_plan(model), walk.FusedStep(model)) < 0.05
        layer = model.model.layers[1]
        for rows in (1, 16, 17):
            x_BC = torch.randn(rows, 64).bfloat16()
            for modules in ([layer.self_attn.o_proj], [layer.mlp.gate_proj, layer.mlp.up_proj], [model.lm_head]):
                ours, others = Products(modules), Products(modules, own=False)
                pairs = [*zip(ours(x_BC), others(x_BC), strict=True)]
                if len(modules) == 2:
                    pairs.append((ours.gated(x_BC), others.gated(x_BC)))
                for out_BO, other_BO in pairs:
                    torch.testing.assert_close(out_BO, other_BO, rtol=0.02, atol=0.02)
                    assert rows <= 16 or torch.equal(out_BO, other_BO)


def test_plain_weights_of_16_bits_are_multiplied_by_our_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with a hook, of float32 or of inputs that are no multiple of 8 are torch's."""
    called: list[int] = []

    def counted(x_BC: Tensor, *arguments: Any) -> Tensor:
        called.append(len(x_BC))
        out: Tensor = linear(x_BC, *arguments)
        return out

    linear = torch.ops.kvb.linear
    monkeypatch.setattr(torch.ops.kvb, "linear", counted)
    hooked = nn.Linear(64, 8).bfloat16()
    hooked.register_forward_hook(lambda module, args, out: out)
    others = [hooked, nn.Linear(64, 8), nn.Linear(60, 8).bfloat16()]
    with torch.no_grad():
        for module in [*others, nn.Linear(64, 8).bfloat16()]:
            assert not called
            for rows in (17, 3):
                x_BC = torch.randn(rows, module.in_features, dtype=module.weight.dtype)
                torch.testing.assert_close(Products([module])(x_BC)[0], module(x_BC), rtol=0.02, atol=0.02)
    assert called == [3]


class Adapted(nn.Module):
    """A linear module with an addition of low rank, as adapters have it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (nn.Linear(a, b, bias=False) for a, b in ((base.in_features, 2), (2, base.out_features)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def test_other_linear_modules_are_called_as_they_are() -> None:
    model = model_of("Llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj, layer.mlp.up_proj = Adapted(layer.self_attn.q_proj), Adapted(layer.mlp.up_proj)
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, out: out * 1.5)
    assert tokens(answers(model, fused="true")) == tokens(answers(model, fused="false"))


def _hook_of_the_whole(model: Any) -> None:
    def turned(module: nn.Module, args: Any, out: Any) -> Any:
        out.logits = out.logits.flip(-1)
        return out

    model.register_forward_hook(turned)


def _hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 1.5)


def _other_forward(model: Any) -> None:
    norm = model.model.layers[2].input_layernorm
    norm.forward = lambda x: x * norm.weight


def _other_norm(model: Any) -> None:
    model.model.layers[0].input_layernorm = nn.RMSNorm(64)


def _subclass(model: Any) -> None:
    class Other(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.up_proj(x))

    model.model.layers[3].mlp.__class__ = Other


def _gelu(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a hook of the whole model": (_hook_of_the_whole, "hooks or other functions are attached to its modules"),
    "a hook": (_hook, "hooks or other functions are attached to its modules"),
    "another forward function": (_other_forward, "hooks or other functions are attached to its modules"),
    "another norm": (_other_norm, "a norm of LlamaForCausalLM is not transformers' own class"),
    "a subclass": (_subclass, "a layer of LlamaForCausalLM is not transformers' own class"),
    "another activation": (_gelu, "the MLP uses GELU instead of SiLU"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_keeps_its_own_steps(change: str) -> None:
    """A change of a module whose forward function would not run keeps its effect, even after a fused answer."""
    model = model_of("Llama")
    first = answers(model, fused="true")
    act, message = CHANGES[change]
    act(model)
    with pytest.raises(ValueError, match=f"^engine.fused=true: {message}; choose engine.fused=auto$"):
        answers(model, fused="true")
    assert tokens(answers(model)) != tokens(first)


def test_a_step_that_gives_other_logits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("Llama")

    def wrong(self: walk.FusedStep, *args: Any) -> Tensor:
        return right(self, *args).roll(1, -1)

    right = walk.FusedStep.__call__
    monkeypatch.setattr(walk.FusedStep, "__call__", wrong)
    with pytest.raises(ValueError, match="engine.fused=true: the logits differ from those of the model's own layers"):
        answers(model, fused="true")


def test_auto_says_once_per_model_why_steps_are_not_fused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of("Phi3")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            outs = answers(model)
    assert outs[0][0].decode_step == "transformers"
    lines = [record.getMessage() for record in caplog.records if "fused" in record.getMessage()]
    assert lines == ["decode steps are not fused: Phi3ForCausalLM is none of llama, mistral, qwen2, qwen3"]


@pytest.mark.gxx
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_compiled_ops_of_a_cpu_give_the_models_logits(name: str) -> None:
    family, extra = MODELS[name]
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = model_of(family, **extra).to(dtype)
        step = walk.FusedStep(model, ops.step_ops(torch.device("cpu")))
        assert step_error(model, checked_plan(model), step) < bound


@pytest.mark.gxx
def test_auto_uses_compiled_ops_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 and bfloat16; other dtypes keep the model's own layers, unless a fused step is asked for."""
    for dtype, step in ((torch.float32, "fused"), (torch.bfloat16, "fused"), (torch.float64, "transformers")):
        model = model_of("Qwen3", head_dim=16).to(dtype)
        with profile() as seen:
            outs = answers(model)
        assert {out.decode_step for of_prompt in outs for out in of_prompt} == {step}
        called = {event.key for event in seen.key_averages()}
        for op in ops.StepOps._fields:
            assert (f"kvb::cpu_{op}" in called) is (step == "fused") and f"kvb::{op}" not in called
    assert answers(model, fused="true")[0][0].decode_step == "fused"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_machine_without_a_compiler_keeps_the_models_own_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    """On a CPU, torch computes a fused step that is asked for."""

    def refuse(device: torch.device) -> None:
        raise ValueError("there is no compiler")

    model = model_of("Llama")
    plan, own = checked_plan(model), answers(model, fused="false")
    monkeypatch.setattr(fused, "device_of", lambda model: torch.device(device))
    monkeypatch.setattr(fused.ops, "step_ops", refuse)
    with caplog.at_level(logging.INFO):
        assert fused.fused_step(model, plan, "auto") is None
    assert "decode steps are not fused: there is no compiler" in caplog.messages
    if device == "cpu":
        ours = answers(model, fused="true")
        assert tokens(ours) == tokens(own) and ours[0][0].decode_step == "fused"
    else:
        with pytest.raises(ValueError, match="^engine.fused=true: there is no compiler; choose engine.fused=auto$"):
            fused.fused_step(model, plan, "true")


def test_a_device_without_our_ops_keeps_the_models_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("Llama")
    plan = checked_plan(model)
    monkeypatch.setattr(fused, "device_of", lambda model: torch.device("mps"))
    assert fused.fused_step(model, plan, "auto") is None
    with pytest.raises(ValueError, match="^engine.fused=true: our own ops run on CPUs and on GPUs of NVIDIA, and the "):
        fused.fused_step(model, plan, "true")


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="^engine.fused=on: must be one of auto, true, false$"):
        answers(model_of("Llama"), fused="on")


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_fused_steps_on_the_gpu(name: str) -> None:
    """The kernels round where transformers rounds, so that the logits differ less than two 16-bit runs may."""
    family, extra = MODELS[name]
    dims = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    model = model_of(family, **extra | dims).to("cuda", torch.bfloat16)
    assert step_error(model, checked_plan(model), walk.FusedStep(model)) < 0.05
    for graph in ("false", "auto"):
        outs = answers(model, fused="true", graph=graph)
        assert {out.decode_step for of_prompt in outs for out in of_prompt} == {"fused"}
