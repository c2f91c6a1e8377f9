"""A probe of a loaded model: the engine's logits must be the model's own.

The survey cannot see everything: a state in addition to the keys and values, or positions from another source, only
change the logits. So the engine computes a short prompt and three decode steps, and the model computes the same logits
by itself in one forward call. The probe runs once per model and process.
"""

from __future__ import annotations

import logging
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.ragged import RaggedCache
from kvbench.engine.attention import Forward, kvbench_attention, last_logits, one_line
from kvbench.engine.caches import ContinuePass, LayerCaches, Place, cache_shape, device_of
from kvbench.engine.prefill import PrefillPass
from kvbench.engine.survey import AttentionPlan, survey
from kvbench.engine.variant import Variant
from kvbench.methods.method import Method

log = logging.getLogger(__name__)

_STEPS = 3
_PROMPT = 29  # tokens: more than the kernel of any convolution, and no multiple of a chunk
_LONGEST = 300  # a probe longer than a window tries the window as well; beyond this it would take too long
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}  # of the logits' spread; half precisions: 0.1
_probed: WeakSet[PreTrainedModel] = WeakSet()


def checked_plan(model: PreTrainedModel) -> AttentionPlan:
    """Return how the layers of a model attend, after a survey and a probe, each once per model and process.

    Raises:
        ValueError: the engine cannot run the model, or computes other logits; or the model is in training mode, in
            which its answers may depend on chance. One line.
    """
    if model.training:
        raise ValueError("model: it is in training mode, where dropout changes answers at random; call model.eval()")
    plan = survey(model)
    if model not in _probed:
        _probe(model, plan)
        _probed.add(model)
        if plan.local:
            log.info(
                "model: %d of %d layers attend to the whole prompt; budgets and kept tokens count over these, the "
                "others keep their window",
                len(plan.full),
                len(plan.full) + len(plan.local),
            )
    return plan


@torch.inference_mode()
def _probe(model: PreTrainedModel, plan: AttentionPlan) -> None:
    device = device_of(model)
    prompt = _length(plan)
    ids_1T = _ids(model, prompt + _STEPS).to(device)
    with one_line(model):
        own_TV = model(input_ids=ids_1T, use_cache=False).logits[0, prompt - 1 :]
        with kvbench_attention(model):
            engine_TV = _engine_logits(model, plan, ids_1T, prompt)
    if not bool(own_TV.isfinite().all()):
        return  # there is nothing to compare; each row with such logits fails later
    error_T = _errors(engine_TV, own_TV).sort().values
    # in half precision, a rounding error can send a token to another expert: one of the four may differ
    exact = model.dtype in _TOLERANCE
    worst = float(error_T[-1 if exact else -2])
    if not worst <= _TOLERANCE.get(model.dtype, 0.1):
        raise ValueError(
            f"model: kvbench's logits for {type(model).__name__} differ from the model's own by {worst:.2g} of their "
            "spread: it holds a state, or uses positions, that kvbench does not know; choose another model"
        )


@torch.inference_mode()
def step_error(model: PreTrainedModel, plan: AttentionPlan, step: Forward) -> float:
    """Return by how much the logits of some decode steps differ from those of the model's own layers.

    The result is a share of the logits' spread; NaN if the logits of `step` are not finite and the model's own are.

    Raises:
        ValueError, RuntimeError: what `step` raises.
    """
    prompt = _length(plan)
    ids_1T = _ids(model, prompt + _STEPS).to(device_of(model))
    with kvbench_attention(model):
        own_TV, other_TV = (_engine_logits(model, plan, ids_1T, prompt, call) for call in (None, step))
    if not bool(own_TV.isfinite().all()):
        return 0.0  # there is nothing to compare; each row with such logits fails later
    return float(_errors(other_TV, own_TV).max())


def _errors(out_TV: Tensor, exact_TV: Tensor) -> Tensor:
    """Return the errors [T] of logits as shares of the spread of the exact ones."""
    exact_TV, out_TV = exact_TV.float(), out_TV.to(exact_TV.device).float()
    spread_T1 = (exact_TV - exact_TV.mean(-1, keepdim=True)).norm(dim=-1)
    error_T: Tensor = (out_TV - exact_TV).norm(dim=-1) / spread_T1.clamp_min(1e-12)
    return error_T


def _engine_logits(
    model: PreTrainedModel, plan: AttentionPlan, ids_1T: Tensor, prompt: int, step: Forward | None = None
) -> Tensor:
    """Return the logits of a full-cache prefill and of the decode steps after it: [1 + steps, V].

    Args:
        step: computes the decode steps; the model's own layers by default.
    """
    caches = LayerCaches(plan, RaggedCache(len(plan.full)))
    call = partial(last_logits, model)
    position_1T = torch.arange(ids_1T.shape[1], device=ids_1T.device)[None]
    everything = Variant(Method("fullkv"))
    places = [[Place(0, _STEPS)]]
    prefill = PrefillPass([everything], caches, places=places, span=prompt, shape=cache_shape(model))
    logits = [call(ids_1T[:, :prompt], position_1T[:, :prompt], prefill)]
    for token in range(prompt, ids_1T.shape[1]):
        at = slice(token, token + 1)
        attention = ContinuePass(caches, [0], ids_1T[:, at].tolist())
        logits.append((step or call)(ids_1T[:, at], position_1T[:, at], attention))
    return torch.cat(logits)


def _length(plan: AttentionPlan) -> int:
    """Return the tokens of the probe's prompt: beyond every window that is short enough, within the model's limit."""
    windows = [mask.size for mask in plan.local.values() if mask.size + 5 + _STEPS <= _LONGEST]
    length = max([_PROMPT, *(size + 5 for size in windows)])
    return length if plan.limit is None else max(1, min(length, plan.limit - _STEPS))


def _ids(model: PreTrainedModel, tokens: int) -> Tensor:
    """Return [1, T] ids spread over the vocabulary, always the same ones, without those at its ends."""
    vocab = int(model.config.get_text_config().vocab_size)
    return (torch.arange(1, tokens + 1) * 7919 % max(1, vocab - 8) + min(4, vocab - 1))[None]
