"""The choice between fused decode steps and transformers' own: which run, for what reason, and the proof.

A fused step is used for a model only after it gave the logits that the model's own forward call gives, for a short
prompt and a few steps. That is tried once per model and process. Otherwise one line of the log has the reason, and
every record says which steps ran.
"""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers import PreTrainedModel

from kvbench.engine import walk
from kvbench.engine.attention import Forward
from kvbench.engine.caches import device_of
from kvbench.engine.probe import step_error
from kvbench.engine.survey import AttentionPlan
from kvbench_kernels import ops

log = logging.getLogger(__name__)

CHOICES = ("auto", "true", "false")
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the logits' spread; half precisions: 0.1
_disproofs: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()  # of the models that were tried
_told: WeakSet[PreTrainedModel] = WeakSet()


def fused_step(model: PreTrainedModel, plan: AttentionPlan, fused: str) -> Forward | None:
    """Return a fused decode step of a model, None if transformers' own runs.

    Args:
        fused: "auto" (on a GPU, if possible), "true" or "false".

    Raises:
        ValueError: "true" although it is impossible; the message names the reason.
    """
    choice = str(fused).lower()  # a configuration's true is True
    if choice not in CHOICES:
        raise ValueError(f"engine.fused={fused}: must be one of {', '.join(CHOICES)}")
    if choice == "false" or (choice == "auto" and device_of(model).type != "cuda"):
        return None
    reason = walk.obstacle(model)
    if reason is None:
        if model not in _disproofs:
            _disproofs[model] = _disproof(model, plan)
        reason = _disproofs[model]
    if reason is None:
        return walk.FusedStep(model)
    if choice == "true":
        raise ValueError(f"engine.fused=true: {reason}; choose engine.fused=auto")
    if model not in _told:
        _told.add(model)
        log.info("decode steps are not fused: %s", reason)
    return None


def _disproof(model: PreTrainedModel, plan: AttentionPlan) -> str | None:
    """Try a fused step. Return why it cannot replace the model's own; None if it can."""
    device = device_of(model)
    try:
        if device.type == "cuda":
            ops.prepare(device)
        error = step_error(model, plan, walk.FusedStep(model))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as problem:
        return str(problem).splitlines()[0]
    if not error <= _TOLERANCE.get(model.dtype, 0.1):
        return f"the logits differ from those of the model's own layers by {error:.2g} of their spread"
    return None
