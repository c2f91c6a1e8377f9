"""A decode step of a Llama-like model in fewer device operations.

transformers computes a layer of Llama in 38 device operations, and 30 of them only change elements: RMSNorm, RoPE,
SiLU, residual sums. Here these are three small ops of ours. Everything else is the model's own: its modules are called
as they are, quantised or adapted ones too, and nothing is patched. Plain linear modules that read the same input run
as one product; for that, their weights lie one after the other in memory.

Shape suffixes: B rows (one token each), C hidden size, H query heads, U KV heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from kvbench.engine.attention import AttentionPass, layer_index

# The architectures whose layers the walk computes. A class must be transformers' own, not a subclass of it.
_FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


class FusedStep:
    """A decode step: a call returns the logits [B, V] after one more token [B, 1] of each row, like `last_logits`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Prepare a step of a model without an obstacle.

        The weights of its linear modules may move in memory; their values and modules stay.
        """
        self._model = model
        self._layers = [_Layer(layer) for layer in _inner(model).layers]

    def __call__(self, ids_B1: Tensor, position_B1: Tensor, attention: AttentionPass) -> Tensor:
        attention.begin(ids_B1)
        inner: Any = _inner(self._model)
        x_B1C = inner.embed_tokens(ids_B1)
        cos_B1D, sin_B1D = inner.rotary_emb(x_B1C, position_ids=position_B1)
        stream_BC, update_BC = x_B1C[:, 0], None
        for layer in self._layers:
            update_BC = layer(stream_BC, update_BC, cos_B1D[:, 0], sin_B1D[:, 0], attention)
        normed_BC = _add_norm(inner.norm, stream_BC, update_BC)
        attention.finish()
        logits_B1V: Tensor = self._model.lm_head(normed_BC[:, None])
        return logits_B1V[:, -1]


class _Layer:
    """A decoder layer: attention and MLP, each after an RMSNorm of the residual stream."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        attn, mlp = layer.self_attn, layer.mlp
        self._qkv = _together([attn.q_proj, attn.k_proj, attn.v_proj])
        self._gate_up = _together([mlp.gate_proj, mlp.up_proj])

    def __call__(
        self, stream_BC: Tensor, update_BC: Tensor | None, cos_BD: Tensor, sin_BD: Tensor, attention: AttentionPass
    ) -> Tensor:
        """Add an update to the residual stream, in place. Return the next update, which is not yet added."""
        attn, mlp = self._layer.self_attn, self._layer.mlp
        normed_BC = _add_norm(self._layer.input_layernorm, stream_BC, update_BC)
        q_BHD, k_BUD, v_BUD = (x.unflatten(-1, (-1, attn.head_dim)) for x in self._qkv(normed_BC))
        normed = hasattr(attn, "q_norm")  # queries and keys of Qwen3
        weights = (attn.q_norm.weight, attn.k_norm.weight) if normed else (None, None)
        eps = attn.q_norm.variance_epsilon if normed else 0.0
        torch.ops.kvb.rope(q_BHD, k_BUD, cos_BD, sin_BD, *weights, eps)
        q_BH1D, k_BU1D, v_BU1D = (x[:, :, None] for x in (q_BHD, k_BUD, v_BUD))
        out_BH1D = attention.attend(layer_index(attn), q_BH1D, k_BU1D, v_BU1D, attn.scaling)
        update_BC = attn.o_proj(out_BH1D.transpose(1, 2).flatten(2))[:, 0]
        normed_BC = _add_norm(self._layer.post_attention_layernorm, stream_BC, update_BC)
        out: Tensor = mlp.down_proj(torch.ops.kvb.silu_mul(*self._gate_up(normed_BC))[:, None])
        return out[:, 0]


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
    skipped = [inner, inner.norm]  # modules whose forward functions do not run
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
    if any(map(_is_changed, skipped)):
        return "hooks or other functions are attached to its modules"
    return None


def _inner(model: PreTrainedModel) -> Any:
    return model.model


def _is_changed(module: nn.Module) -> bool:
    """Return True if calling a module does more than its class says."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def _add_norm(norm: Any, stream_BC: Tensor, update_BC: Tensor | None) -> Tensor:
    normed_BC: Tensor = torch.ops.kvb.add_rms_norm(stream_BC, update_BC, norm.weight, norm.variance_epsilon)
    return normed_BC


def _together(modules: Sequence[nn.Module]) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return a function that applies linear modules to the same input [B, C]: one product if all are plain."""
    plain = [module for module in modules if type(module) is nn.Linear and not _is_changed(module)]
    biases = [module.bias for module in plain if module.bias is not None]
    kinds = {(module.weight.dtype, module.weight.device) for module in plain}
    if len(plain) < len(modules) or len(kinds) > 1 or len(biases) not in (0, len(plain)):
        return lambda x_BC: [module(x_BC[:, None])[:, 0] for module in modules]
    weight, bias = _joined([module.weight for module in plain]), _joined(biases) if biases else None
    sizes = [module.out_features for module in plain]
    return lambda x_BC: F.linear(x_BC, weight, bias).split(sizes, dim=-1)


@torch.inference_mode(False)
@torch.no_grad()
def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return one tensor of several, along the first dimension. They become views of it, so nothing is stored twice."""
    first, end = parts[0], parts[0].data_ptr()
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            break
        end += part.nbytes
    else:
        return first.detach().as_strided(shape, first.stride())  # joined before
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([part.shape[0] for part in parts]), strict=True):
        part.data = view
    if whole.is_cuda:
        torch.cuda.empty_cache()  # the old memory is in pieces that the next layer does not fit into
    return whole
