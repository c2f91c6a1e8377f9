"""The caches of a model's rows, and the choice of the backend that attends to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.base import KVCache, NewTokens
from kvbench.cache.local import LocalLayer
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.common.kinds import CACHES
from kvbench.common.suggest import did_you_mean
from kvbench.engine.guard import LayerGuard
from kvbench.engine.survey import AttentionPlan, survey
from kvbench.methods.fitting import CacheShape
from kvbench_kernels import backends

log = logging.getLogger(__name__)

_logged: set[backends.Choice] = set()


class Place(NamedTuple):
    """A row of the cache, and the tokens that will be appended to it."""

    row: int
    reserve: int


class LayerCaches:
    """The caches of all layers: one compressed cache for the full layers, and one each for the local ones.

    Attributes:
        plan: which layers are full and which are local.
        kv: the compressed cache; its layer 0 is the first full layer.
        local: the recent keys and values of each local layer.
    """

    def __init__(self, plan: AttentionPlan, kv: KVCache) -> None:
        self.plan, self.kv = plan, kv
        self.local = {layer: LocalLayer(mask) for layer, mask in plan.local.items()}

    def attend(
        self,
        layer: int,
        rows: Sequence[int],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        """Append T new tokens to `rows` in one of the model's layers, attend causally. Return [B, H, T, D]."""
        if layer in self.local:
            return self.local[layer].attend(rows, q_BHTD, k_BUTD, v_BUTD, scaling)
        return self.kv.attend(self.plan.index(layer), rows, q_BHTD, k_BUTD, v_BUTD, scaling, new)

    def fork(self, layer: int, row: int, copies: Sequence[int]) -> None:
        """Give new rows what a row holds in one of the model's layers."""
        if layer in self.local:
            self.local[layer].fork(row, copies)
        else:
            self.kv.fork(self.plan.index(layer), row, copies)

    def release(self, rows: Sequence[int]) -> None:
        """Forget finished rows and free their memory."""
        self.kv.release(rows)
        for layer in self.local.values():
            layer.release(rows)

    def compact(self) -> None:
        """Free what finished rows still occupy."""
        self.kv.compact()


class ContinuePass:
    """The attention of a decode step or of a question: it appends the tokens and attends to all that the rows hold.

    Attributes:
        rows: the cache's rows, one per row of the batch.
        ids: the new tokens of each row, on the host.
    """

    def __init__(self, caches: LayerCaches, rows: Iterable[int], ids: Sequence[Sequence[int]]) -> None:
        self._caches, self.rows, self.ids = caches, tuple(rows), ids
        self._guard = LayerGuard(caches.plan)
        self._new: NewTokens | None = None

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""
        self._guard.begin()
        self._new = NewTokens(self.ids, ids_BT)

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Attend in one of the model's layers: [B, H, T, D]."""
        self._guard.enter(layer)
        if self._new is not None and self._new.ids_BT.device != q_BHTD.device:  # layers may lie on several devices
            self._new = NewTokens(self.ids, self._new.ids_BT.to(q_BHTD.device))
        return self._caches.attend(layer, self.rows, q_BHTD, k_BUTD, v_BUTD, scaling, self._new)

    def finish(self) -> None:
        """End the forward call."""
        self._guard.finish()


def make_cache(model: PreTrainedModel, cache: str = "ragged", kernel: str = "auto") -> KVCache:
    """Return an empty cache for the layers of a model that are compressed.

    Args:
        cache: "ragged" saves memory, "masked" simulates.
        kernel: the backend that attends to a ragged cache: auto, or one of `kvbench_kernels.backends.NAMES`.

    Raises:
        ValueError: no such cache or kernel, or the kernel cannot run here; the message names what is missing.
    """
    if cache not in CACHES:
        raise ValueError(f"engine.cache={cache}: no such cache.{did_you_mean(cache, CACHES)}")
    layers = num_layers(model)
    if cache == "masked":
        if kernel not in ("auto", "torch"):
            raise ValueError(f"kernel={kernel}: engine.cache=masked attends by torch alone; choose kernel=auto")
        return MaskedCache(layers)
    return RaggedCache(layers, backends.make_backend(choose(model, kernel).name))


def choose(model: PreTrainedModel, kernel: str) -> backends.Choice:
    """Return the backend for a model's attention, and the reason. It is logged once per process.

    Raises:
        ValueError: no such kernel, or it cannot run here; or the engine cannot run the model.
    """
    plan = survey(model)
    choice = backends.choose_backend(
        kernel,
        backends.AttentionSpec(
            device=device_of(model),
            dtype=model.dtype,
            head_dim=plan.head_dim,
            group=plan.heads // plan.kv_heads,
        ),
    )
    if choice not in _logged:
        _logged.add(choice)
        log.info("kernel: %s (%s)", choice.name, choice.reason)
    return choice


def cache_shape(model: PreTrainedModel) -> CacheShape:
    """Return the sizes of the layers that are compressed."""
    plan = survey(model)
    return CacheShape(len(plan.full), plan.kv_heads, plan.heads, plan.head_dim, model.dtype)


def num_layers(model: PreTrainedModel) -> int:
    """Return the number of layers that are compressed."""
    return len(survey(model).full)


def device_of(model: PreTrainedModel) -> torch.device:
    """Return the device of the model's input."""
    return next(model.get_input_embeddings().parameters()).device
