"""Forward passes of a method's own: they see all keys of the prompt, and nothing of them stays.

Shape suffixes: B batch (1), H query heads, U KV heads, P tokens of a pass, S keys that a pass sees, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.engine.attention import last_logits
from kvbench.engine.guard import LayerGuard
from kvbench.engine.rope import kept_lengths
from kvbench.engine.survey import AttentionPlan
from kvbench.methods.context import LayerContext
from kvbench.methods.model_view import ModelView
from kvbench.methods.part_call import part_call
from kvbench.methods.probing import Pass, Probe, ProbeRange
from kvbench.methods.prompt_facts import Spans

_BLOCK = 512  # queries that are attended to at once: a mask of all of them would be large

LocalKeys = Mapping[int, tuple[Tensor, Tensor]]
"""{model's layer: the last keys and values [U, S, D] of the prompt}, of the layers with a window."""


class ProbePass:
    """The attention of one pass: causal, over the prompt's keys and the tokens of the pass.

    Args:
        contexts: the full layers of the prompt, in order.
        local: the ends of the prompt in the layers with a window.
        probe: observes the pass in every full layer; its results go to `LayerContext.probed`.
        about: the range of the prompt that the pass is about.
    """

    def __init__(
        self,
        plan: AttentionPlan,
        contexts: Sequence[LayerContext],
        local: LocalKeys,
        probe: Probe,
        about: ProbeRange,
    ) -> None:
        self._plan, self._contexts, self._local = plan, contexts, local
        self._probe, self._about = probe, about
        self._guard = LayerGuard(plan)

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""
        self._guard.begin()

    def attend(self, layer: int, q_BHPD: Tensor, k_BUPD: Tensor, v_BUPD: Tensor, scaling: float) -> Tensor:
        """Attend in one of the model's layers, and let the probe observe it: [B, H, P, D]."""
        self._guard.enter(layer)
        span = self._contexts[0].num_tokens
        if layer in self._local:
            old_k, old_v = self._local[layer]
        else:
            ctx = self._contexts[self._plan.index(layer)]
            old_k, old_v = ctx.k, ctx.v
            what = f"the probe {type(self._probe).__name__}"
            with ctx.unchanged(what), part_call(what, ctx.layer):
                after = self._probe.observe(ctx.probed.get(self._probe), ctx, q_BHPD[0], k_BUPD[0], self._about)
            ctx.probed[self._probe] = after
        k_BUSD, v_BUSD = (torch.cat([old[None], new], 2) for old, new in ((old_k, k_BUPD), (old_v, v_BUPD)))
        tokens, keys = q_BHPD.shape[2], k_BUSD.shape[2]
        key_S = torch.arange(span + tokens - keys, span + tokens, device=q_BHPD.device)
        outs = []
        for begin in range(0, tokens, _BLOCK):
            end = min(begin + _BLOCK, tokens)
            query_P1 = torch.arange(span + begin, span + end, device=q_BHPD.device)[:, None]
            visible_PS = key_S <= query_P1
            if layer in self._local:
                visible_PS = self._plan.local[layer].visible(query_P1, key_S)
            outs.append(
                F.scaled_dot_product_attention(
                    q_BHPD[:, :, begin:end], k_BUSD, v_BUSD, attn_mask=visible_PS, scale=scaling, enable_gqa=True
                )
            )
        return torch.cat(outs, 2)

    def finish(self) -> None:
        """End the forward call."""
        self._guard.finish()


def longest_pass(probe: Probe, ids: Sequence[int], view: ModelView, spans: Spans) -> int:
    """Return the tokens of a probe's longest pass over a prompt with these spans; 0 without a pass."""
    return max((len(tokens) for tokens, _ in _passes(probe, ids, view, spans)), default=0)


def _passes(probe: Probe, ids: Sequence[int], view: ModelView, spans: Spans) -> list[Pass]:
    """Return the passes of a probe."""
    with part_call(f"the probe {type(probe).__name__}.passes"):
        return probe.passes(ids, view, spans)


class ProbeRunner:
    """The passes of a prompt's probes.

    Args:
        view: a view of the model, for the texts of the passes.
        token_ids: [T] ids of the compressed span.
        spans: its named regions.
    """

    def __init__(
        self, model: PreTrainedModel, plan: AttentionPlan, view: ModelView, token_ids: Tensor, spans: Spans
    ) -> None:
        self._model, self._plan, self._view, self._ids, self._spans = model, plan, view, token_ids, spans

    def __call__(self, probe: Probe, contexts: Sequence[LayerContext], local: LocalKeys) -> None:
        """Run all passes of a probe. What it observed is in `probed` of every context afterwards."""
        for ctx in contexts:
            ctx.probed[probe] = None
        span = len(self._ids)
        with kept_lengths(self._model):
            for ids, about in _passes(probe, self._ids.tolist(), self._view, self._spans):
                attention = ProbePass(self._plan, contexts, local, probe, about)
                ids_1P = torch.tensor([ids], device=self._ids.device)
                position_1P = torch.arange(span, span + len(ids), device=self._ids.device)[None]
                last_logits(self._model, ids_1P, position_1P, attention)
