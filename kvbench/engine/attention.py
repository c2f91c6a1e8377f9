"""The connection to transformers: an attention function registered under the name "kvbench".

transformers calls it with the queries, keys and values of every layer, after RoPE. The keyword argument `kvbench` of
the model's forward call says what to do with them, so modules carry no state and nothing is patched. No mask
function is registered under the name. transformers therefore builds no mask, which is right for whole prompts and for
ragged decoding; `kvbench.engine.survey` finds out which masks the layers would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from kvbench.engine.products_cpu import fast_products

NAME = "kvbench"

# Keywords that transformers gives to every attention function and that ours can ignore: positions are in the queries
# and keys already; the others concern the outputs of a forward call, or how flash attention packs rows.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


class AttentionPass(Protocol):
    """The attention of one forward call.

    Shape suffixes: B batch, H query heads, U KV heads, T tokens of the call, D head dimension.
    """

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""
        ...

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Return the attention output [B, H, T, D]."""
        ...

    def finish(self) -> None:
        """End the forward call. Raises ValueError if a layer did not attend, or attended twice."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    kvbench: AttentionPass | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    if kvbench is None:
        raise ValueError(
            'attention "kvbench" only works inside kvbench.generate, or in calls of the model that kvbench.compressed '
            "was given: not of a wrapper, of a part of the model or of its forward method"
        )
    if attention_mask is not None:
        raise ValueError(f"model: {type(module).__name__} builds an attention mask of its own; choose another model")
    layer = layer_index(module)
    refuse_unknown(module, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch._C.DisableTorchFunction():  # the mode of `fast_products` would look at each of our operations
        out_BHTD = kvbench.attend(layer, query, key, value, scale)
    return out_BHTD.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)


def layer_index(module: nn.Module) -> int:
    """Return the decoder layer an attention module belongs to.

    Raises:
        ValueError: the module has no layer index.
    """
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ValueError(f"model: {type(module).__name__} does not say which layer it is; choose another model")
    return layer


def refuse_unknown(module: nn.Module, keywords: Mapping[str, object]) -> None:
    """Raise ValueError if the attention call asks for something that our attention does not do.

    Keywords that are None ask for nothing. Soft-capped logits (`softcap`), attention sinks (`s_aux`), position biases
    and attention in both directions are examples of what is refused.
    """
    if keywords.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise ValueError(f"model: {type(module).__name__} attends in both directions; choose a causal language model")
    for name, value in keywords.items():
        if value is not None and name != "is_causal" and name not in _WITHOUT_EFFECT:
            raise ValueError(
                f"model: {type(module).__name__} calls its attention with {name}=..., which kvbench cannot do; "
                "choose another model"
            )


@contextmanager
def attention_named(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run the model with the attention registered under `name`; restore the previous one on exit."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise ValueError(
                f"model: {type(model).__name__} does not use transformers' attention interface; choose another model"
            )
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def one_line(model: PreTrainedModel) -> Iterator[None]:
    """Turn an error of a model's forward call into a ValueError of one line."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, NotImplementedError) as error:
        if str(error).startswith("model: "):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"model: {type(model).__name__} cannot run in kvbench ({type(error).__name__}: {first}); choose another "
            "model"
        ) from error


@contextmanager
def kvbench_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run the model with our attention; restore the previous one on exit."""
    if model.config._attn_implementation == NAME:
        raise ValueError("kvbench.generate and kvbench.compressed cannot run inside kvbench.compressed")
    with attention_named(model, NAME):
        yield


Forward = Callable[[Tensor, Tensor, "AttentionPass"], Tensor]
"""(ids [B, T], positions [B, T], attention) to the logits [B, V] of each row's last token."""


def last_logits(model: PreTrainedModel, ids_BT: Tensor, position_BT: Tensor, attention: AttentionPass) -> Tensor:
    """Return the logits [B, V] of each row's last token after a forward call through our attention."""
    attention.begin(ids_BT)
    with fast_products(ids_BT):
        out = model(input_ids=ids_BT, position_ids=position_BT, use_cache=False, logits_to_keep=1, kvbench=attention)
    attention.finish()
    logits_BTV: Tensor = out.logits
    return logits_BTV[:, -1]
