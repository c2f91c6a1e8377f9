"""A check of config.json before transformers reads it, because absurd sizes cost hours or all memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kvbench.common.kinds import is_number
from kvbench.common.text import shortened

_DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
# Sizes that every decoder has under one of these names: at least 1.
_SIZES = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "hidden_size", "n_embd", "d_model"),
    *("intermediate_size", "n_inner", "ffn_dim", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "n_positions"),
)
_PER_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")  # or one size per layer
# The largest value of a number, by its key; the first that fits counts. Several times what any model has.
_LIMITS = (
    (re.compile(r"layer(s|_idx)?$|blocks?$"), 1_000),
    (re.compile(r"expert"), 100_000),
    (re.compile(r"head(s)?$"), 100_000),
    (re.compile(r"size$|dim$|rank$|n_embd|n_inner|d_model"), 2**31 - 1),
    (re.compile(r"position(s|_embeddings)$|window$|ctx$"), 2**40),
)


def check(config: Mapping[str, object]) -> None:
    """Check the content of a config.json. Raises ValueError, one line that names the key."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"config.json: model_type={model_type}: must be the name of an architecture")
    for key, value in _numbers(config):
        name = key.rpartition(".")[2]
        most = next((limit for pattern, limit in _LIMITS if pattern.search(name)), None)
        if most is not None and abs(value) > most:
            raise ValueError(f"config.json: {key}={shortened(value)}: must be at most {most}")
        if name in _SIZES and (value < 1 or value != int(value)):
            raise ValueError(f"config.json: {key}={value}: must be an integer, at least 1")
    for part, prefix in [(config, ""), *((v, f"{k}.") for k, v in config.items() if isinstance(v, Mapping))]:
        _check_types(part, prefix)
    _check_quantization(config.get("quantization_config"))


def keys_of(config: Mapping[str, object], value: object) -> list[str]:
    """Return the keys whose value is a text, as `key=value`, to explain an error that names the value alone."""
    return [f"{key}={item}" for key, item in _items(config) if item == value and isinstance(item, str)]


def _check_types(part: Mapping[str, object], prefix: str) -> None:
    for name in _SIZES:
        value = part.get(name)
        is_list = name in _PER_LAYER and isinstance(value, list) and len(value) == part.get("num_hidden_layers")
        items = value if is_list and isinstance(value, list) else [value]
        if any(item is not None and not is_number(item) for item in items):
            raise ValueError(f"config.json: {prefix}{name}={shortened(value)}: must be an integer, at least 1")
    for name in ("dtype", "torch_dtype"):
        value = part.get(name)
        if value is not None and str(value).removeprefix("torch.") not in _DTYPES and not isinstance(value, Mapping):
            raise ValueError(f"config.json: {prefix}{name}={shortened(value)}: must be one of {', '.join(_DTYPES)}")
    types = part.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise ValueError(f"config.json: {prefix}layer_types={shortened(types)}: must be a list of names")
    count = part.get("num_hidden_layers")
    if isinstance(types, list) and isinstance(count, int) and len(types) != count:
        raise ValueError(f"config.json: {prefix}layer_types has {len(types)} entries, num_hidden_layers={count}")
    for name in ("rope_parameters", "rope_scaling"):
        if part.get(name) is not None and not isinstance(part[name], Mapping):
            raise ValueError(f"config.json: {prefix}{name}={shortened(part[name])}: must be a dictionary")


def _check_quantization(node: object) -> None:
    if node is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    settings = node if isinstance(node, Mapping) else {}
    method = settings.get("quant_method")
    if method not in KNOWN and not settings.get("load_in_4bit") and not settings.get("load_in_8bit"):
        raise ValueError(f"config.json: quantization_config.quant_method={method}: transformers does not know it")


def _items(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of all values that are not dictionaries; of a list, each item under the list's key."""
    waiting = [(path, node)]
    while waiting:
        where, item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [(f"{where}.{key}" if where else str(key), value) for key, value in item.items()]
        elif isinstance(item, list):
            waiting += [(where, value) for value in item]
        else:
            yield where, item


def _numbers(config: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for key, value in _items(config):
        if is_number(value):
            if value != value:
                raise ValueError(f"config.json: {key}={value}: must be a number")
            yield key, value
