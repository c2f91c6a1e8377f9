"""A recorder for the CPU that imitates a CUDA graph, for tests of recorded decode steps.

The recorder runs the work to learn the shapes, undoes its changes, and refuses operations that wait for the device.
A replay runs the same operations on the same memory. A decision that the host would take again in each step is
therefore missing in a replay, and gives a wrong token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.engine import decode, graph
from kvbench.engine import steps as engine_steps
from kvbench.engine.caches import num_layers
from kvbench.engine.variant import Generation
from kvbench.models.load import Loaded
from kvbench_kernels import backends

WAITS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Tape(TorchDispatchMode):
    """A list of all operations, and of the earlier contents of the tensors they write to."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {op}")
        schema = op._schema.arguments
        named = [(argument, kwargs[argument.name]) for argument in schema if argument.name in kwargs]
        for argument, value in [*zip(schema, args, strict=False), *named]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        out = op(*args, **kwargs)
        self.operations.append((op, args, kwargs, out))
        return out


class Recorder:
    """A stand-in for `graph.CudaRecorder` on a CPU."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.tape = Tape()

    def leave_out(self, work: Callable[[], None]) -> None:
        self.tape.operations.append((work, None, None, None))

    def __call__(self, work: Callable[[], graph.Out]) -> tuple[graph.Out, Callable[[], None]]:
        tape = self.tape = Tape()
        try:
            with tape:
                out = work()
        finally:
            for tensor, held in reversed(tape.before):
                tensor.copy_(held)

        def replay() -> None:
            for op, args, kwargs, old in tape.operations:
                if args is None:
                    op()
                    continue
                inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
                given = {x.untyped_storage().data_ptr() for x in inputs}
                for new, kept in zip(tree_flatten(op(*args, **kwargs))[0], tree_flatten(old)[0], strict=True):
                    if isinstance(kept, torch.Tensor) and kept.untyped_storage().data_ptr() not in given:
                        kept.copy_(new)

        return out, replay


def recorded_engine(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return `generate` with recorded steps and a backend without host work, and the list of its `GraphedSteps`."""
    batches: list[graph.GraphedSteps] = []

    class Noted(graph.GraphedSteps):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            batches.append(self)

    def generate(prompts: Any, variants: Any, steps: Any = Noted, **settings: Any) -> Any:
        with monkeypatch.context() as patch:
            imitate(patch, loaded, steps)
            return kvbench.generate(loaded.model, loaded.tokenizer, prompts, variants, **settings)

    return SimpleNamespace(generate=generate, batches=batches)


def imitate(patch: pytest.MonkeyPatch, loaded: Loaded, steps: Any = graph.GraphedSteps) -> RaggedCache:
    """Let the engine attend as on a GPU, and record its steps. Return the cache of the next batch.

    On a CPU the op of the backend is its reference.

    Args:
        steps: None for eager steps.
    """
    patch.setattr(engine_steps, "recordable", lambda model, cache, graph: None if steps is None else cache)
    patch.setattr(engine_steps, "CudaRecorder", Recorder)
    patch.setattr(engine_steps, "GraphedSteps", steps)
    cache = RaggedCache(num_layers(loaded.model), backends.make_backend("cuda"))
    patch.setattr(decode, "make_cache", lambda *_: cache)
    return cache


def tokens(outs: Sequence[Sequence[Generation]]) -> list[list[list[int]]]:
    return [[g.token_ids for g in of_prompt] for of_prompt in outs]


def with_small_reserve(add: Any) -> Any:
    """Return a function that adds rows to a cache with room for nine tokens: the cache moves later."""

    def adds(self: RaggedCache, layer: int, entries: Sequence[Any], *of_prompt: Any) -> None:
        add(self, layer, [type(e)(**(vars(e) | {"reserve": 9})) for e in entries], *of_prompt)

    return adds
