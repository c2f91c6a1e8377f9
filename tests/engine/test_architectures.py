"""Models of many architectures, with random weights: the engine gives their own tokens, or refuses them in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import kvbench
from kvbench.engine.survey import survey
from kvbench.prompts import Prompt

NEW = 8
SNAPKV = kvbench.load_method("snapkv", window=8)
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
HEADS = {"head_dim": 16}
MAMBA = {"mamba_d_state": 16, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
LOCAL = {"sliding_window": 16, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
GEMMA3N = HEADS | {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": 300,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "activation_sparsity_pattern": None,
}

# name of the test: (model class, config class, config, full layers)
EXACT: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}, 4),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}, 4),
    "qwen2, upper layers slide": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        2,
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEADS, 4),
    "mistral, no window": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None}, 4),
    "mistral, a window that is long enough": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 64}, 4),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 2}, 4),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {"sliding_window": None}, 4),
    "phi": ("PhiForCausalLM", "PhiConfig", {}, 4),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}, 4),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", LOCAL, 1),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", HEADS, 4),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {}, 4),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", {"sliding_window": None}, 4),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {}, 4),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {"num_key_value_heads": None}, 4),
    "gpt2, learned positions": ("GPT2LMHeadModel", "GPT2Config", {"n_positions": 256}, 4),
    "opt, learned positions": (
        "OPTForCausalLM",
        "OPTConfig",
        {"ffn_dim": 64, "word_embed_proj_dim": 64, "pad_token_id": 1},
        4,
    ),
    "cohere2, no positions in full layers": ("Cohere2ForCausalLM", "Cohere2Config", LOCAL, 1),
    "gemma2 without soft caps": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        HEADS | {"sliding_window": 16, "attn_logit_softcapping": None},
        2,
    ),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", LOCAL | HEADS, 1),
    "gemma3n": ("Gemma3nForCausalLM", "Gemma3nTextConfig", GEMMA3N | {"num_kv_shared_layers": 0}, 2),
    "llama4, chunks": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        HEADS | EXPERTS | {"attention_chunk_size": 16, "intermediate_size_mlp": 96, "no_rope_layers": [1, 1, 1, 0]},
        1,
    ),
}

# name of the test: (model class, config class, config, part of the message)
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "gemma2, soft caps": ("Gemma2ForCausalLM", "Gemma2Config", HEADS | {"sliding_window": 16}, "softcap="),
    "gpt-oss, sinks": ("GptOssForCausalLM", "GptOssConfig", HEADS | EXPERTS | {"sliding_window": 16}, "s_aux="),
    "deepseek-v3, narrow values": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        "16 numbers wide and its values 8",
    ),
    "jetmoe, keys are repeated after the cache": (
        "JetMoeForCausalLM",
        "JetMoeConfig",
        EXPERTS | {"num_attention_heads": 8, "num_local_experts": 4, "num_experts_per_tok": 4, "kv_channels": 16},
        "stores 2 key heads x 16 and attends to 8 x 16",
    ),
    "gemma3n, two layers with the keys of others": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        GEMMA3N | {"num_kv_shared_layers": 2},
        "layer 2 of Gemma3nForCausalLM attends to keys that another layer stores",
    ),
    "bart, its decoder alone": (
        "BartForCausalLM",
        "BartConfig",
        {"decoder_layers": 6, "pad_token_id": 1, "d_model": 64},
        "6 layers of BartForCausalLM attend, and its config lists num_hidden_layers=4",
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {}, "attention interface"),
    "falcon": ("FalconForCausalLM", "FalconConfig", {}, "attention interface"),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {}, "does not pass keywords on"),
    "qwen3-next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        HEADS
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "state",
    ),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", {"layer_types": ["conv", "conv", "full_attention", "conv"]}, "state"),
    "falcon-h1, a state in every layer": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        HEADS | MAMBA | {"mamba_d_ssm": 64, "mamba_n_heads": 4},
        "state",
    ),
    "bamba": ("BambaForCausalLM", "BambaConfig", MAMBA | {"attn_layer_indices": [1, 3], "mamba_n_heads": 8}, "state"),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8},
        "state",
    ),
    "granite-4-h": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        MAMBA
        | EXPERTS
        | {
            "layer_types": ["mamba", "attention", "mamba", "attention"],
            "shared_intermediate_size": 64,
            "mamba_n_heads": 8,
        },
        "state",
    ),
}

# before 5.5, transformers does not pass the keywords of a forward call to all attention functions
OLD_VERSION = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 5)
REFUSED_BY_OLD_VERSIONS = ("gpt2, learned positions", "opt, learned positions")


class Ids:
    """A tokenizer that decodes to nothing."""

    def decode(self, ids: list[int], **_: object) -> str:
        return ""


def build(model_class: str, config_class: str, config: dict[str, Any]) -> Any:
    settings = {name: value for name, value in (SIZES | config).items() if value is not None or name not in SIZES}
    settings |= {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name not in settings}
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()


def ids(length: int, seed: int) -> list[int]:
    return torch.randint(3, 290, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def own_answer(model: Any, prompt: list[int], new: int = NEW) -> list[int]:
    tokens = torch.tensor([prompt])
    mask = torch.ones_like(tokens)
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


@pytest.mark.parametrize("name", EXACT)
def test_answers_are_those_of_generate(name: str) -> None:
    """Two prompts of different lengths share a batch; prompts and answers exceed windows and chunks."""
    model_class, config_class, config, full = EXACT[name]
    model = build(model_class, config_class, config)
    if name in REFUSED_BY_OLD_VERSIONS and OLD_VERSION:
        with pytest.raises(ValueError, match="model: .*; choose another"):
            kvbench.generate(model, Ids(), [ids(20, seed=1)], [("fullkv", None)], max_new_tokens=2)
        return
    prompts = [ids(45, seed=1), ids(13, seed=2)]
    expected = [own_answer(model, prompt) for prompt in prompts]
    settings: dict[str, Any] = {"max_new_tokens": NEW, "stop_ids": [], "max_prompts": 2}
    outs = kvbench.generate(model, Ids(), prompts, [("fullkv", None), (SNAPKV, 12)], **settings)
    assert [of_prompt[0].token_ids for of_prompt in outs] == expected
    assert all(len(generation.kept) == full for of_prompt in outs for generation in of_prompt)
    assert [of_prompt[1].kept_mean for of_prompt in outs] == [12, 12]
    asked = [Prompt(tuple(p), len(p) - 5, frozenset(), "") for p in prompts]
    outs = kvbench.generate(model, Ids(), asked, [("fullkv", None)], question="agnostic", **settings)
    assert [of_prompt[0].token_ids for of_prompt in outs] == expected


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name: str) -> None:
    model_class, config_class, config, message = REFUSED[name]
    model = build(model_class, config_class, config)
    with pytest.raises(ValueError) as refused:
        kvbench.generate(model, Ids(), [ids(20, seed=1)], [("fullkv", None)], max_new_tokens=2)
    line = str(refused.value)
    assert (message in line or OLD_VERSION) and line.startswith("model: ") and "\n" not in line


def test_attention_with_a_temperature_has_a_length_limit() -> None:
    """Llama 4 scales queries beyond `floor_scale` tokens by a position that it reads from its cache."""
    model_class, config_class, config, _ = EXACT["llama4, chunks"]
    model = build(model_class, config_class, config | {"floor_scale": 32})
    with pytest.raises(ValueError, match="need 37 positions, but beyond 32 tokens its attention has a temperature"):
        kvbench.generate(model, Ids(), [ids(30, seed=1)], [("fullkv", None)], max_new_tokens=NEW)
    assert survey(model).limit == 31
