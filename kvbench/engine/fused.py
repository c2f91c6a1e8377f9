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

from kvbench.common.kinds import SWITCHES
from kvbench.engine import walk
from kvbench.engine.attention import Forward
from kvbench.engine.caches import device_of
from kvbench.engine.probe import step_error
from kvbench.engine.survey import AttentionPlan
from kvbench_kernels import ops
from kvbench_kernels.backends.cpu import DTYPES as CPU_DTYPES

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the logits' spread; half precisions: 0.1
_disproofs: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()  # of the models that were tried
_told: WeakSet[PreTrainedModel] = WeakSet()


def fused_step(model: PreTrainedModel, plan: AttentionPlan, fused: str) -> Forward | None:
    """Return a fused decode step of a model, None if transformers' own runs.

    Args:
        fused: "auto" (if possible, with compiled ops), "true" or "false". On a CPU without a compiler, "true"
            computes in torch.

    Raises:
        ValueError: "true" although it is impossible; the message names the reason.
    """
    choice = str(fused).lower()  # a configuration's true is True
    if choice not in SWITCHES:
        raise ValueError(f"engine.fused={fused}: must be one of {', '.join(SWITCHES)}")
    if choice == "false":
        return None
    reason, small = walk.obstacle(model), None
    if reason is None:
        small, reason = _small_ops(device_of(model), model.dtype, choice)
    if small is not None:
        if model not in _disproofs:
            _disproofs[model] = _disproof(model, plan, small)
        reason = _disproofs[model]
        if reason is None:
            return _step(model, small)
    if choice == "true":
        raise ValueError(f"engine.fused=true: {reason}; choose engine.fused=auto")
    if model not in _told:
        _told.add(model)
        log.info("decode steps are not fused: %s", reason)
    return None


def _small_ops(device: torch.device, dtype: torch.dtype, choice: str) -> tuple[ops.StepOps | None, str | None]:
    """Return the ops between the products of a step, or why there are none. They are compiled if necessary."""
    if device.type == "cpu" and dtype not in CPU_DTYPES:
        reason = f"dtype {str(dtype).removeprefix('torch.')}: our own ops for CPUs take float32 and bfloat16"
    elif device.type not in ("cpu", "cuda"):
        reason = f"our own ops run on CPUs and on GPUs of NVIDIA, and the model is on device={device}"
    else:
        try:
            return ops.step_ops(device), None
        except (ValueError, RuntimeError, OSError) as problem:
            reason = str(problem).splitlines()[0]
    return (ops.STEP_OPS, None) if device.type == "cpu" and choice == "true" else (None, reason)


def _step(model: PreTrainedModel, small: ops.StepOps) -> walk.FusedStep:
    return walk.FusedStep(model, small, own_products=device_of(model).type == "cuda")


def _disproof(model: PreTrainedModel, plan: AttentionPlan, small: ops.StepOps) -> str | None:
    """Try a fused step. Return why it cannot replace the model's own; None if it can."""
    try:
        error = step_error(model, plan, _step(model, small))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as problem:
        return str(problem).splitlines()[0]
    if not error <= _TOLERANCE.get(model.dtype, 0.1):
        return f"the logits differ from those of the model's own layers by {error:.2g} of their spread"
    return None
