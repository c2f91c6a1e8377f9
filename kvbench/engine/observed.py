"""Greedy decoding on a full cache that shows the attention of every decode step, for probes of heads.

Shape suffixes: B batch (1), H query heads, U KV heads, G query heads per KV head, T tokens of the call, S keys,
L full layers, D head dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.local import attend_prompt
from kvbench.engine.attention import kvbench_attention, last_logits
from kvbench.engine.caches import device_of
from kvbench.engine.guard import LayerGuard
from kvbench.engine.limits import RequestLimits
from kvbench.engine.probe import checked_plan
from kvbench.engine.rope import forget_lengths
from kvbench.engine.survey import AttentionPlan


class ObservedPass:
    """The attention of a prompt and of the steps after it. It keeps all keys and values.

    Attributes:
        weights: per full layer, the attention [H, S] of the latest step over all keys; None before the first step.
    """

    def __init__(self, plan: AttentionPlan) -> None:
        self._plan = plan
        self._guard = LayerGuard(plan)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.weights: list[Tensor | None] = [None] * len(plan.full)

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call."""
        self._guard.begin()

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Attend in one of the model's layers: [B, H, T, D]. The first call takes the prompt, the others one token."""
        self._guard.enter(layer)
        mask = self._plan.local.get(layer)
        if layer not in self._kept:
            self._kept[layer] = k_BUTD, v_BUTD
            if mask is not None:
                return attend_prompt(q_BHTD, k_BUTD, v_BUTD, scaling, mask)
            return F.scaled_dot_product_attention(
                q_BHTD, k_BUTD, v_BUTD, is_causal=q_BHTD.shape[2] > 1, scale=scaling, enable_gqa=True
            )
        old_k, old_v = self._kept[layer]
        k_USD, v_USD = torch.cat([old_k, k_BUTD], 2)[0], torch.cat([old_v, v_BUTD], 2)[0]
        self._kept[layer] = k_USD[None], v_USD[None]
        q_UGD = q_BHTD[0, :, 0].unflatten(0, (k_USD.shape[0], -1))
        logits_UGS = (q_UGD @ k_USD.transpose(1, 2)).float() * scaling
        if mask is not None:
            at_S = torch.arange(k_USD.shape[1], device=k_USD.device)
            logits_UGS = logits_UGS.masked_fill(~mask.visible(at_S[-1:], at_S), -torch.inf)
        weight_UGS = logits_UGS.softmax(-1)
        if mask is None:
            self.weights[self._plan.index(layer)] = weight_UGS.flatten(0, 1)
        out_UGD: Tensor = weight_UGS.to(v_USD.dtype) @ v_USD
        return out_UGD.flatten(0, 1)[None, :, None]

    def finish(self) -> None:
        """End the forward call."""
        self._guard.finish()


@torch.inference_mode()
def observed_steps(
    model: PreTrainedModel,
    ids: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int],
    max_length: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield every token of the greedy answer to a prompt, with the attention [L, H, S] of the step that chose it.

    The prompt without its last token is prefilled; that token is the input of the first step. The token that ends the
    answer is the last one.

    Raises:
        ValueError: the engine cannot run the model, or the prompt is too long for it; one line.
    """
    plan = checked_plan(model)
    error = RequestLimits(model, plan, max_length).error(ids, max_new_tokens, len(ids) - 1)
    if error is not None or len(ids) < 2:
        raise ValueError(f"model: {error or 'a prompt needs two tokens'}")
    attention, place = ObservedPass(plan), device_of(model)
    ids_1T = torch.tensor([list(ids)], device=place)
    position_1T = torch.arange(len(ids) + max_new_tokens, device=place)[None]
    forget_lengths(model)
    try:
        with kvbench_attention(model):
            end = len(ids) - 1
            last_logits(model, ids_1T[:, :end], position_1T[:, :end], attention)
            token_11 = ids_1T[:, end:]
            for step in range(end, end + max_new_tokens):
                logits_BV = last_logits(model, token_11, position_1T[:, step : step + 1], attention)
                if not bool(logits_BV.isfinite().all()):
                    raise ValueError("model: its logits are not finite; choose another model.dtype")
                token_11 = logits_BV.argmax(-1, keepdim=True)
                token = int(token_11)
                yield token, torch.stack([x_HS.to(place) for x_HS in attention.weights if x_HS is not None])
                if token in stop_ids:
                    return
    finally:
        forget_lengths(model)
