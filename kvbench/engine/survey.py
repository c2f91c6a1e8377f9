"""A survey of a loaded model: which layers attend to the whole prompt, and which only to recent tokens.

The survey runs the model instead of reading its config: two tokens, with a second attention function under whose name
a mask function is registered. transformers calls that mask function with the rule of every layer's mask. A model that
the engine cannot run is refused here in one line, before anything is computed. So is one whose own cache holds other
keys than its attention gets, such as half as many heads: bytes and budgets would be counted over the wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from kvbench.cache.local import LocalMask
from kvbench.engine.attention import attention_named, layer_index, one_line, refuse_unknown

NAME = "kvbench_survey"
_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})


@dataclass(frozen=True)
class AttentionPlan:
    """The layers of a model, as the engine treats them.

    Attributes:
        full: indices of the layers that attend to all earlier tokens. These are compressed; budgets and kept
            tokens count over them, in this order.
        local: masks of the other layers, which are kept whole.
        heads, kv_heads, head_dim: shape of the full layers.
        modules: the attention module of every layer, as transformers hands it to the attention function.
        limit: tokens of prompt and answer up to which the engine computes the model's attention; None for no limit.
        reason: why there is a limit.
    """

    full: tuple[int, ...]
    local: Mapping[int, LocalMask]
    heads: int
    kv_heads: int
    head_dim: int
    modules: Mapping[int, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    limit: int | None = None
    reason: str = ""

    def index(self, layer: int) -> int:
        """Return the place of a model's layer among the full layers."""
        return self.full.index(layer)


@dataclass(frozen=True)
class _Rule:
    """The rule of a layer's mask, and how far back it looks; no size means no limit."""

    visible: Callable[..., Tensor | bool]
    size: int | None


@dataclass
class _Notes:
    """Masks and shapes of the attention calls of one forward call."""

    masks: dict[int, LocalMask | None] = field(default_factory=dict)
    shapes: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # query heads, KV heads, head dimension
    modules: dict[int, nn.Module] = field(default_factory=dict)


_plans: WeakKeyDictionary[PreTrainedModel, AttentionPlan] = WeakKeyDictionary()


def survey(model: PreTrainedModel) -> AttentionPlan:
    """Return how the layers of a model attend. Each model is surveyed once per process.

    Raises:
        ValueError: the model needs something that the engine does not do; one line.
    """
    if model not in _plans:
        _plans[model] = _survey(model)
    return _plans[model]


def _survey(model: PreTrainedModel) -> AttentionPlan:
    device = next(model.get_input_embeddings().parameters()).device
    ids_1T = torch.tensor([[2, 3]], device=device)
    position_1T = torch.arange(2, device=device)[None]
    notes = _Notes()
    with torch.inference_mode(), attention_named(model, NAME), one_line(model), _own_mask(model):
        model(input_ids=ids_1T, position_ids=position_1T, use_cache=False, kvbench=notes)
        _check_layers(model, len(notes.masks))
        out = model(input_ids=ids_1T, position_ids=position_1T, use_cache=True, kvbench=_Notes())
    limits = _check_cache(model, notes, getattr(out, "past_key_values", None))
    return _plan(model, notes, limits)


@contextmanager
def _own_mask(model: PreTrainedModel) -> Iterator[None]:
    """Say it if a model fails because it reads what our attention functions replace: masks, or attention weights."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        if _Rule.__name__ in str(error):
            reason = "works on its attention mask by itself, and kvbench gives it none"
        elif "NoneType" in str(error):
            reason = f"reads an attention mask or attention weights, and kvbench gives it neither ({error})"
        else:
            raise
        raise ValueError(f"model: {type(model).__name__} {reason}; choose another model") from error


def _check_layers(model: PreTrainedModel, attending: int) -> None:
    """Raise ValueError if other layers attend than a model's config lists."""
    config, name = model.config.get_text_config(), type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    layers = int(config.num_hidden_layers)
    if attending > layers:  # the config of an encoder-decoder may count the layers of its encoder
        raise ValueError(
            f"model: {attending} layers of {name} attend, and its config lists num_hidden_layers={layers}; choose "
            "another model"
        )
    if kinds or attending < layers:
        which = f" ({', '.join(sorted(map(str, kinds)))})" if kinds else ""
        raise ValueError(
            f"model: {attending} of the {layers} layers of {name} attend, and others hold a state of their own{which}, "
            "which kvbench cannot keep for a batch; choose a model in which every layer attends"
        )


def _check_cache(model: PreTrainedModel, notes: _Notes, cache: object) -> list[tuple[int, str]]:
    """Return lengths beyond which a model's own cache drops tokens that its attention would see.

    kvbench stores what the attention gets. JetMoE repeats its keys after the cache, and the last layers of Gemma 3n
    take the keys of earlier ones: their bytes would be counted twice, and copies would choose tokens on their own.

    Raises:
        ValueError: the cache holds other keys than the attention gets.
    """
    if not isinstance(cache, Cache):
        return []  # code of the model's own may have another kind of cache
    name, limits = type(model).__name__, []
    for layer, (_, heads, width) in sorted(notes.shapes.items()):
        held = cache.layers[layer] if layer < len(cache.layers) else None
        keys = getattr(held, "keys", None)
        if not isinstance(keys, Tensor) or not keys.numel():
            raise ValueError(
                f"model: layer {layer} of {name} attends to keys that another layer stores, and kvbench would store "
                "them twice; choose another model"
            )
        if keys.shape[1::2] != (heads, width):
            raise ValueError(
                f"model: layer {layer} of {name} stores {keys.shape[1]} key heads x {keys.shape[3]} and attends to "
                f"{heads} x {width}, so kvbench would count its cache wrongly; choose another model"
            )
        window = getattr(held, "sliding_window", None) if getattr(held, "is_sliding", False) else None
        if window is not None and notes.masks[layer] is None:
            limits.append((int(window), f"its own cache keeps {window} tokens only"))
    return limits


def _plan(model: PreTrainedModel, notes: _Notes, limits: list[tuple[int, str]]) -> AttentionPlan:
    local = {layer: mask for layer, mask in sorted(notes.masks.items()) if mask is not None}
    full = tuple(layer for layer in sorted(notes.masks) if layer not in local)
    limits = limits + _limits(model)
    if not full:  # up to the size of the window, every layer attends to all tokens
        size = min(mask.size for mask in local.values())
        limits.append((size, f"every layer looks back {size} tokens only"))
        full, local = tuple(sorted(notes.masks)), {}
    shapes = {notes.shapes[layer] for layer in full}
    if len(shapes) > 1:
        raise ValueError(
            f"model: the layers of {type(model).__name__} differ in heads or head dimension; choose another model"
        )
    limit, reason = min(limits, default=(None, ""), key=lambda pair: pair[0])
    return AttentionPlan(full, local, *shapes.pop(), modules=notes.modules, limit=limit, reason=reason)


def _limits(model: PreTrainedModel) -> list[tuple[int, str]]:
    """Return lengths beyond which a layer reads its position from a cache that the engine does not have."""
    config = model.config.get_text_config()
    if getattr(config, "attn_temperature_tuning", None):
        floor = int(config.floor_scale)
        return [(floor - 1, f"beyond {floor} tokens its attention has a temperature that depends on the position")]
    return []


def _survey_mask(mask_function: Callable[..., Tensor | bool], local_size: int | None = None, **_: object) -> object:
    """Return the rule of a mask in place of the mask transformers asks for; None for a causal mask."""
    return None if mask_function is causal_mask_function else _Rule(mask_function, local_size)


def _survey_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    kvbench: _Notes | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    name, layer = type(module).__name__, layer_index(module)
    if kvbench is None:
        raise ValueError(f"model: {name} does not pass keywords on to its attention; choose another model")
    refuse_unknown(module, kwargs)
    if layer in kvbench.masks:
        raise ValueError(f"model: {name} attends twice in layer {layer}; choose another model")
    if key.shape != value.shape:
        raise ValueError(
            f"model: the keys of {name} are {key.shape[-1]} numbers wide and its values {value.shape[-1]}; choose a "
            "model in which both are the same"
        )
    if key.shape[2] != query.shape[2] or query.shape[1] % key.shape[1]:
        raise ValueError(f"model: {name} attends to something other than its own tokens; choose another model")
    kvbench.masks[layer] = _local_mask(name, attention_mask, sliding_window, query.device)
    kvbench.modules[layer] = module
    kvbench.shapes[layer] = query.shape[1], key.shape[1], key.shape[3]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _survey_attention)
AttentionMaskInterface.register(NAME, _survey_mask)


def _local_mask(name: str, rule: object, sliding_window: int | None, device: torch.device) -> LocalMask | None:
    """Return a layer's local mask from its mask's rule and the window of its attention call; None for a full layer."""
    if rule is None:
        return None if sliding_window is None else LocalMask(int(sliding_window))
    if isinstance(rule, Tensor):
        raise ValueError(f"model: {name} builds an attention mask of its own; choose another model")
    if isinstance(rule, _Rule) and rule.size is not None:
        candidates = [LocalMask(int(rule.size)), LocalMask(int(rule.size), chunked=True)]
        for mask in candidates:
            if _agrees(rule, mask, device) and sliding_window in (None, mask.size):
                return mask
    raise ValueError(
        f"model: the attention mask of {name} is neither causal nor a sliding window nor chunks; choose another model"
    )


def _agrees(rule: _Rule, mask: LocalMask, device: torch.device) -> bool:
    """Return True if a rule shows the same keys as a mask, tried at the positions where the two could differ."""
    size, zero = mask.size, torch.tensor(0, device=device)
    tried = [0, 1, size - 1, size, size + 1, 2 * size - 1, 2 * size, 3 * size + 1]
    query_T1, key_S = torch.tensor(tried, device=device)[:, None], torch.arange(max(tried) + 1, device=device)
    try:
        shown = torch.as_tensor(rule.visible(zero, zero, query_T1, key_S)).expand(len(query_T1), len(key_S))
    except IndexError:  # the rule looks up something of the call's own tokens, such as which of them are images
        return False
    return torch.equal(shown.bool(), mask.visible(query_T1, key_S))
