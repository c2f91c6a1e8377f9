"""A decode step of a Llama-like model in fewer device operations.

transformers computes a layer of Llama in 38 device operations, and 30 of them only change elements: RMSNorm, RoPE,
SiLU, residual sums. Here these are three small ops of ours. Everything else is the model's own: its modules are called
as they are, quantised or adapted ones too, and nothing is patched. Plain linear modules that read the same input run
as one product, of our own kernel where there are few rows (`products`).

Shape suffixes: B rows (one token each), C hidden size, H query heads, U KV heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from kvbench.engine.attention import AttentionPass, layer_index
from kvbench.engine.products import Products, is_changed
from kvbench_kernels import ops

# The architectures whose layers the walk computes. A class must be transformers' own, not a subclass of it.
_FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


class FusedStep:
    """A decode step: a call returns the logits [B, V] after one more token [B, 1] of each row, like `last_logits`."""

    def __init__(self, model: PreTrainedModel, small: ops.StepOps = ops.STEP_OPS, own_products: bool = True) -> None:
        """Prepare a step of a model in which `obstacle` finds nothing.

        The weights of its linear modules may move in memory; their values and modules stay.

        Args:
            small: what changes elements between the products.
            own_products: use our kernel for products of few rows; False is for comparisons.
        """
        self._model, self._small = model, small
        self._layers = [_Layer(layer, small, own_products) for layer in _inner(model).layers]
        self._head = Products([model.lm_head], own_products)

    def __call__(self, ids_B1: Tensor, position_B1: Tensor, attention: AttentionPass) -> Tensor:
        attention.begin(ids_B1)
        inner: Any = _inner(self._model)
        x_B1C = _embedded(inner.embed_tokens, ids_B1)
        cos_B1D, sin_B1D = inner.rotary_emb(x_B1C, position_ids=position_B1)
        stream_BC, update_BC = x_B1C[:, 0], None
        for layer in self._layers:
            update_BC = layer(stream_BC, update_BC, cos_B1D[:, 0], sin_B1D[:, 0], attention)
        normed_BC = _add_norm(self._small, inner.norm, stream_BC, update_BC)
        attention.finish()
        return self._head(normed_BC)[0]


class _Layer:
    """A decoder layer: attention and MLP, each after an RMSNorm of the residual stream."""

    def __init__(self, layer: Any, small: ops.StepOps, own_products: bool) -> None:
        self._layer, self._small = layer, small
        attn, mlp = layer.self_attn, layer.mlp
        self._qkv = Products([attn.q_proj, attn.k_proj, attn.v_proj], own_products)
        self._out = Products([attn.o_proj], own_products)
        self._gate_up = Products([mlp.gate_proj, mlp.up_proj], own_products, small.silu_mul)
        self._down = Products([mlp.down_proj], own_products)

    def __call__(
        self, stream_BC: Tensor, update_BC: Tensor | None, cos_BD: Tensor, sin_BD: Tensor, attention: AttentionPass
    ) -> Tensor:
        """Add an update to the residual stream, in place. Return the next update, which is not yet added."""
        attn = self._layer.self_attn
        normed_BC = _add_norm(self._small, self._layer.input_layernorm, stream_BC, update_BC)
        normed = hasattr(attn, "q_norm")  # queries and keys of Qwen3
        rotated = None if normed else self._qkv.rotated(normed_BC, cos_BD, sin_BD)
        q_BHD, k_BUD, v_BUD = (x.unflatten(-1, (-1, attn.head_dim)) for x in rotated or self._qkv(normed_BC))
        if rotated is None:
            weights = (attn.q_norm.weight, attn.k_norm.weight) if normed else (None, None)
            eps = attn.q_norm.variance_epsilon if normed else 0.0
            self._small.rope(q_BHD, k_BUD, cos_BD, sin_BD, *weights, eps)
        q_BH1D, k_BU1D, v_BU1D = (x[:, :, None] for x in (q_BHD, k_BUD, v_BUD))
        out_BH1D = attention.attend(layer_index(attn), q_BH1D, k_BU1D, v_BU1D, attn.scaling)
        (update_BC,) = self._out(out_BH1D.transpose(1, 2).flatten(2)[:, 0])
        normed_BC = _add_norm(self._small, self._layer.post_attention_layernorm, stream_BC, update_BC)
        (out_BC,) = self._down(self._gate_up.gated(normed_BC))
        return out_BC


def obstacle(model: PreTrainedModel) -> str | None:
    """Return why the walk cannot compute a model's decode steps; None if it can."""
    names = {f"transformers.models.{name}.modeling_{name}": prefix for name, prefix in _FAMILIES.items()}
    prefix = names.get(type(model).__module__)
    if prefix is None:
        return f"{type(model).__name__} is none of {', '.join(_FAMILIES)}"
    home = sys.modules[type(model).__module__]

    def own(module: object, name: str) -> bool:
        return type(module) is getattr(home, prefix + name)

    inner: Any = _inner(model) if own(model, "ForCausalLM") else None
    if not own(inner, "Model"):
        return f"{type(model).__name__} is not transformers' own class"
    if getattr(model, "hf_device_map", None) is not None or len({p.device for p in model.parameters()}) > 1:
        return "the model is spread over devices"
    skipped = [model, inner, inner.norm]  # modules whose forward functions do not run
    for layer in inner.layers:
        attn, mlp = layer.self_attn, layer.mlp
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(attn, name) for name in ("q_norm", "k_norm") if hasattr(attn, name)]
        if not (own(layer, "DecoderLayer") and own(attn, "Attention") and own(mlp, "MLP")):
            return f"a layer of {type(model).__name__} is not transformers' own class"
        if not all(own(norm, "RMSNorm") for norm in [*norms, inner.norm]):
            return f"a norm of {type(model).__name__} is not transformers' own class"
        if type(mlp.act_fn) not in (nn.SiLU, type(ACT2FN["silu"])):
            return f"the MLP uses {type(mlp.act_fn).__name__} instead of SiLU"
        skipped += [layer, attn, mlp, mlp.act_fn, *norms]
    if len(inner.layers) != model.config.num_hidden_layers:
        return f"num_hidden_layers={model.config.num_hidden_layers}, and the model has {len(inner.layers)} layers"
    if any(map(is_changed, skipped)):
        return "hooks or other functions are attached to its modules"
    return None


def _inner(model: PreTrainedModel) -> Any:
    return model.model


def _embedded(embed: nn.Module, ids_B1: Tensor) -> Tensor:
    """Return the vectors [B, 1, C] of tokens. torch's function for embeddings is slow for few of them."""
    if type(embed) is nn.Embedding and embed.max_norm is None and not is_changed(embed):
        return embed.weight[ids_B1]
    vectors_B1C: Tensor = embed(ids_B1)
    return vectors_B1C


def _add_norm(small: ops.StepOps, norm: Any, stream_BC: Tensor, update_BC: Tensor | None) -> Tensor:
    return small.add_rms_norm(stream_BC, update_BC, norm.weight, norm.variance_epsilon)
