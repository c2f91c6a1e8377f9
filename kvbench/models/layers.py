"""The types of a model's layers, read from its config, and a check that kvbench can compress their cache.

The engine looks again at the loaded model and compares its answers with the model's own. This check comes before the
weights are loaded, so that nobody waits for 100 GB to read that the model is not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvbench.common.kinds import is_number

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FULL = "full_attention"
LOCAL = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}  # layer type to config key
_STATE = ("linear_attention", "mamba", "recurrent", "conv", "hybrid", "hybrid_sliding")
OTHER_WAYS = {  # type of a model to why its layers do not work; tests/models/test_types.py looks for more of them
    "bert-generation": "it is an encoder, whose tokens attend to later ones",
    "diffllama": "it attends twice in each layer",
    "doge": "it computes an attention mask of its own",
    "gemma4_unified": "its attention mask depends on the images of the prompt",
    "hrm_text": "it attends several times in each layer",
    "jetmoe": "it repeats its keys after the cache, so kvbench would store them several times",
    "nemotron": "its layers do not pass keywords on to their attention",
}
_SPARSE = ("indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse")


def check(config: PreTrainedConfig) -> None:
    """Raise ValueError, one line that begins with the model type, if kvbench cannot compress a model's cache."""
    reason = _by_class(config) or _by_config(config.get_text_config())
    if reason is not None:
        raise ValueError(f"{config.model_type} is not supported: {reason}; choose another model")


def window_limit(config: PreTrainedConfig) -> int | None:
    """Return the longest prompt with its answer, in tokens, over which attention is what kvbench computes.

    None where nothing limits it. A model with at least one layer that attends to everything has no limit by its
    windows: those layers are compressed, and the others keep their window whole.
    """
    text = config.get_text_config()
    types = layer_types(config)
    limits = []
    if FULL not in types:
        limits += [window for kind in types if (window := _number(text, LOCAL.get(kind, ""))) is not None]
    if _value(text, "attn_temperature_tuning"):
        # the scale of a layer without rotary positions is 1 below this position, and unknown to a cache beyond it
        limits += [scale - 1 for scale in [_number(text, "floor_scale")] if scale is not None]
    return min(limits, default=None)


def has_learned_positions(config: PreTrainedConfig) -> bool:
    """Return True if a model looks its positions up in a table, so that none follow the last one."""
    text = config.get_text_config()
    rotary = ("rope_parameters", "rope_theta", "rotary_emb_base", "rotary_pct", "no_rope_layers")
    return not any(_value(text, name) for name in rotary)


def layer_types(config: PreTrainedConfig) -> set[str]:
    """Return the types of a model's layers, by transformers' names."""
    text = config.get_text_config()
    return set(_types(text)) or {FULL if _number(text, "sliding_window") is None else "sliding_attention"}


def local_layers(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the number of layers that keep a window next to those that are compressed, and the largest window.

    0 and 0 if a config declares none, or no layer that attends to everything: then all layers are compressed.
    """
    text, types = config.get_text_config(), _types(config.get_text_config())
    windows = [_number(text, LOCAL.get(kind, "")) or 0 for kind in types if kind != FULL]
    return (len(windows), max(windows)) if windows and FULL in types else (0, 0)


def sizes(config: PreTrainedConfig, name: str, kind: str | None = None) -> set[int]:
    """Return the values of a size over the layers of a type, or over all layers; several where layers differ."""
    text = config.get_text_config()
    try:
        values = [getattr(text, name, None)]
    except RuntimeError:  # transformers refuses to give one value where layers differ
        values = [getattr(layer, name, None) for layer in text.per_layer_config]
        if kind is not None and _types(text):
            values = [value for value, of in zip(values, _types(text), strict=True) if of == kind]
    return {int(value) for value in values if isinstance(value, int | float)}


def _by_class(config: PreTrainedConfig) -> str | None:
    """Return why the class that transformers has for a config does not work; None if it does."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "auto_map", None) and type(config) not in AutoModelForCausalLM._model_mapping:
        return None  # the model's own code; the engine looks at the model itself
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, and its decoder attends to two caches"
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return "transformers has no causal language model of this type"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return "it is an encoder, whose tokens attend to later ones"
    mapped: Any = AutoModelForCausalLM._model_mapping[type(config)]
    cls = mapped[0] if isinstance(mapped, tuple) else mapped
    if getattr(cls, "_is_stateful", False) and not _all_attend(config.get_text_config()):
        return "its layers keep a recurrent or convolution state next to keys and values"
    other_way = OTHER_WAYS.get(config.model_type)
    if other_way is not None and not getattr(config, "is_decoder", False):
        return other_way
    if not cls._supports_attention_backend:
        return "it computes attention without transformers' attention interface"
    if not cls._supports_sdpa:
        return "transformers computes its attention without SDPA (capped logits, sinks or a sparse pattern)"
    return None


def _by_config(text: PreTrainedConfig) -> str | None:
    """Return why the layers that a config describes cannot be compressed; None if they can."""
    types = set(_types(text))
    for kind in sorted(types - {FULL, *LOCAL}):
        if kind in _STATE:
            return f"its layers of type {kind} keep a recurrent or convolution state next to keys and values"
        if kind in _SPARSE:
            return f"its layers of type {kind} choose the tokens they attend to by themselves"
        return f"its layers of type {kind} are unknown"
    if any(_number(text, LOCAL[kind]) is None for kind in types & set(LOCAL)):
        return "config.json lists sliding or chunked layers and does not say how far they look back"
    if _value(text, "kv_lora_rank") is not None:
        return "its keys and values are stored as one latent vector (MLA)"
    for name in ("head_dim", "num_key_value_heads"):
        if len(sizes(text, name, FULL)) > 1:
            return f"{name} differs between its layers ({', '.join(map(str, sorted(sizes(text, name, FULL))))})"
    widths, value_widths = sizes(text, "head_dim"), sizes(text, "v_head_dim")
    if value_widths and widths and value_widths != widths:
        return f"its values are {max(value_widths)} wide and its keys {max(widths)}"
    if (_number(text, "num_kv_shared_layers") or 0) > 0:
        return "some of its layers read the keys and values of other layers"
    if _value(text, "attn_logit_softcapping") is not None or _value(text, "attn_logits_soft_cap") is not None:
        return "its attention caps its logits"
    if _value(text, "cross_attention_layers") or _value(text, "add_cross_attention"):
        return "some of its layers attend to another input"
    if _value(text, "use_bidirectional_attention") in (True, "all"):  # "vision": among the tokens of an image alone
        return "its tokens attend to later ones"
    return None


def _all_attend(text: PreTrainedConfig) -> bool:
    """Return True if a config lists its layers and all of them attend (some types of hybrids allow that)."""
    return bool(_types(text)) and set(_types(text)) <= {FULL, *LOCAL}


def _types(text: PreTrainedConfig) -> tuple[str, ...]:
    """Return the type of each layer as the config declares it; () if it does not."""
    declared = _value(text, "layer_types")
    return tuple(map(str, declared)) if isinstance(declared, list | tuple) else ()


def _value(text: PreTrainedConfig, name: str) -> object:
    """Return an attribute of a config; None where there is none or it differs between layers."""
    try:
        value: object = getattr(text, name, None)
    except RuntimeError:
        value = next((v for layer in text.per_layer_config if (v := getattr(layer, name, None)) is not None), None)
    return value


def _number(text: PreTrainedConfig, name: str) -> int | None:
    """Return a number above 0; None for anything else (a window of 0 or -1 is none)."""
    value = _value(text, name) if name else None
    return int(value) if is_number(value) and value > 0 else None
