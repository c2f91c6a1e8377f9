"""Models in a wrapper: that of PEFT, which holds a model of transformers with adapters in its layers, or torch's."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def unwrapped(model: object) -> PreTrainedModel:
    """Return the model of transformers in a wrapper of PEFT, whose layers hold the adapters; return another as it is.

    Raises:
        ValueError: a wrapper whose model alone computes something else, or no model of transformers; one line.
    """
    name = type(model).__name__
    if isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        raise ValueError(
            "model: torch.compile wraps it, and its compiled code would run without kvbench's attention; "
            "give the model from which it was compiled"
        )
    if isinstance(model, PreTrainedModel):
        return model
    if not hasattr(model, "get_base_model"):
        raise ValueError(f"model: {name} is not a model of transformers; give the one that it wraps, or load one")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            f"model: {name} puts learned tokens before the prompt, which kvbench cannot follow; give a "
            "model without them, or with adapters in its layers, such as LoRA"
        )
    return unwrapped(model.get_base_model())
