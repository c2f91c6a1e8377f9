"""`kvbench.compressed`: plain transformers code on a compressed cache.

    with kvbench.compressed(model, "snapkv", budget=128):
        model.generate(**inputs)

A forward hook of the model, removed on exit, hands our attention pass to the layers and puts a cache in place of the
empty one that `generate` makes. That cache stores nothing itself: it answers how many tokens were seen, which is
what positions need. What is kept lies in our ragged cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.cache.base import KVCache
from kvbench.engine.attention import kvbench_attention
from kvbench.engine.caches import make_cache, num_layers
from kvbench.engine.prefill import ContinuePass, PrefillPass
from kvbench.engine.variant import Variant

_RESERVE = 64  # `generate` does not say how many tokens will come; beyond this the cache grows by half its length


class _SeenLayer(CacheLayerMixin):
    """Counts tokens and passes keys and values through to the attention function."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.seen += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class CompressedCache(Cache):
    """What `generate` holds; `kv` is the cache that stores the kept keys and values."""

    def __init__(self, kv: KVCache, layers: int) -> None:
        super().__init__(layers=[_SeenLayer() for _ in range(layers)])
        self.kv = kv

    @property
    def kept(self) -> list[list[int]]:
        """Stored tokens per layer and KV head."""
        return self.kv.lengths(0)


class Compressed:
    """Handle of a `compressed` block; `cache` is that of the latest prompt, None before the first."""

    def __init__(self, model: PreTrainedModel, variant: Variant, cache: str, kernel: str) -> None:
        self._model, self._variant, self._kind, self._kernel = model, variant, cache, kernel
        self.cache: CompressedCache | None = None
        self._replaced: Any = None  # the caller's cache that ours stands for

    def hook(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the model's forward: a new prompt gets a new cache, a running one goes on."""
        ids_BT = kwargs["input_ids"] if kwargs.get("input_ids") is not None else next(iter(args), None)
        if ids_BT is None or kwargs.get("use_cache") is False:
            raise ValueError("kvbench.compressed needs input_ids and use_cache=True")
        mask = kwargs.get("attention_mask")
        if ids_BT.shape[0] != 1 or (isinstance(mask, Tensor) and not bool(mask.all())):
            raise ValueError(
                "kvbench.compressed takes one unpadded sequence at a time; use kvbench.generate for batches"
            )
        past = kwargs.get("past_key_values")
        if past is not None and past is self._replaced:
            past = kwargs["past_key_values"] = self.cache
        if isinstance(past, CompressedCache):
            kwargs["kvbench"] = ContinuePass(past.kv, [0], past.get_seq_length())
            return args, kwargs
        if past is not None and past.get_seq_length() > 0:
            raise ValueError("kvbench.compressed cannot take over a cache that already holds tokens")
        layers = num_layers(self._model)
        self.cache = CompressedCache(make_cache(self._model, self._kind, self._kernel), layers)
        self._replaced = past
        kwargs["past_key_values"] = self.cache
        kwargs["kvbench"] = _FinishingPrefill(
            [self._variant], self.cache.kv, num_layers=layers, token_ids=ids_BT[0], reserve=_RESERVE
        )
        return args, kwargs


class _FinishingPrefill(PrefillPass):
    """A prefill that ends by itself after the last layer: nobody calls `finish` here."""

    def attend(self, layer: int, *args: Any) -> Tensor:
        out = super().attend(layer, *args)
        if layer == self._num_layers - 1:
            self.finish()
        return out


@contextmanager
def compressed(
    model: PreTrainedModel, variant: Variant, *, cache: str = "ragged", kernel: str = "auto"
) -> Iterator[Compressed]:
    """Inside the block, `model(...)` and `model.generate(...)` compress each prompt once and decode from the rest."""
    handle = Compressed(model, variant, cache, kernel)
    remove = model.register_forward_pre_hook(handle.hook, with_kwargs=True)
    try:
        with kvbench_attention(model), torch.no_grad():
            yield handle
    finally:
        remove.remove()
