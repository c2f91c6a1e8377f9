"""Which cache a model's rows live in, and what computes the attention over it."""

from __future__ import annotations

import logging
from functools import cache as remember

from transformers import PreTrainedModel

from kvbench.cache.base import KVCache
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.common.suggest import did_you_mean
from kvbench_kernels import backends

log = logging.getLogger(__name__)

CACHES = ("ragged", "masked")


def make_cache(model: PreTrainedModel, cache: str = "ragged", kernel: str = "auto") -> KVCache:
    """An empty cache for a model.

    Args:
        cache: "ragged" saves memory, "masked" simulates.
        kernel: who attends to a ragged cache: auto, or one of `kvbench_kernels.backends.NAMES`.

    Raises:
        ValueError: no such cache or kernel, or the kernel cannot run here; says what is missing.
    """
    if cache not in CACHES:
        raise ValueError(f"engine.cache={cache}: no such cache.{did_you_mean(cache, CACHES)}")
    if cache == "masked":
        if kernel not in ("auto", "torch"):
            raise ValueError(f"kernel={kernel}: engine.cache=masked attends by torch alone; choose kernel=auto")
        return MaskedCache(num_layers(model))
    return RaggedCache(num_layers(model), backends.make_backend(choose(model, kernel).name))


def choose(model: PreTrainedModel, kernel: str) -> backends.Choice:
    """The backend for a model's attention, and why; said once on the console."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    choice = backends.choose_backend(
        kernel,
        backends.AttentionSpec(
            device=next(model.get_input_embeddings().parameters()).device,
            dtype=model.dtype,
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            group=heads // int(getattr(config, "num_key_value_heads", None) or heads),
        ),
    )
    _say(choice)
    return choice


def num_layers(model: PreTrainedModel) -> int:
    """Decoder layers of the model."""
    return int(model.config.get_text_config().num_hidden_layers)


@remember
def _say(choice: backends.Choice) -> None:
    log.info("kernel: %s (%s)", choice.name, choice.reason)
