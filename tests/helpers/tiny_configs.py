"""Tiny configs of any model type of transformers: two layers or one of each kind, and a few thousand parameters."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

VOCAB = 120
_NAMES: dict[int, str] = {  # size to the names that config classes have for it
    32: "hidden_size n_embd d_model embed_dim word_embed_proj_dim shared_intermediate_size expert_hidden_size "
    "intermediate_size ffn_dim n_inner ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size dff "
    "intermediate_size_mlp prefix_dense_intermediate_size",
    2: "num_hidden_layers n_layer n_layers num_layers depth encoder_layers num_key_value_heads num_experts_per_tok "
    "moe_k top_k moe_topk num_local_experts num_experts n_routed_experts moe_num_experts encoder_depth",
    1: "n_group topk_group n_shared_experts moe_num_shared_experts first_k_dense_replace moe_num_active_experts",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads",
    8: "head_dim sliding_window attention_chunk_size local_attention laurel_rank hidden_size_per_layer_input "
    "kv_channels global_head_dim kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim patch_size",
    64: "max_position_embeddings n_positions max_seq_len",
    VOCAB: "vocab_size vocab_size_per_layer_input",
    16: "image_size base_channels",
}
_SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
_NONE_STAYS = ("sliding_window", "attention_chunk_size", "kv_lora_rank", "q_lora_rank")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_OTHERS: dict[str, dict[str, Any]] = {  # what a type needs besides
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "gpt_bigcode": {"num_key_value_heads": 1},
    "lfm2_moe": {"layer_types": ["full_attention"] * 2},
}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tiny_config(config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a config of the class. Raises what transformers raises if the sizes do not go together."""
    default = config_class()
    settings: dict[str, Any] = {name: size for name, size in _SIZES.items() if _has(default, name)}
    settings |= dict.fromkeys(_IDS, 1)
    settings |= _OTHERS.get(default.model_type, {})
    if kinds := list(dict.fromkeys(getattr(default, "layer_types", None) or ())):
        settings.setdefault("layer_types", kinds * (2 if len(kinds) == 1 else 1))
        settings["num_hidden_layers"] = len(settings["layer_types"])
    for name in config_class.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig) and name not in settings:
            settings[name] = tiny_config(type(part)).to_dict()
    return config_class(**settings)


def _has(config: PreTrainedConfig, name: str) -> bool:
    """Return True if a config has something under a name, or one value per layer. A window of None stays None."""
    try:
        return hasattr(config, name) and not (name in _NONE_STAYS and getattr(config, name) is None)
    except RuntimeError:
        return True
