"""Arenas of prompts whose lengths the host reads once, for all layers, after the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kvbench
from kvbench.cache.arena import Arena, gather
from kvbench.cache.base import Entry
from kvbench.cache.late_arena import PromptLengths, gather_unread
from kvbench.cache.ragged import RaggedCache
from kvbench.common.paths import conf_dir
from kvbench.engine import decode, prefill
from kvbench.engine.caches import num_layers
from kvbench.engine.variant import Generation
from kvbench.methods import context, eviction
from kvbench_kernels import backends
from kvbench_kernels.ops.prompt import PromptKernels
from tests.helpers.tiny_engine import Tiny, generate, prompt, tiny_model

HEADS, TOKENS, DIM = 3, 40, 8
NAMES = [("ada_snapkv", 70), ("snapkv", 70), ("pyramidkv", 70), ("streaming_llm", 70), ("fullkv", None)]


def entry(row: int, share: float, reserve: int, surplus: int = 0) -> Entry:
    """Return a row that keeps about a share of the tokens, and says that it keeps `surplus` fewer."""
    keep_UT = torch.rand(HEADS, TOKENS, generator=torch.Generator().manual_seed(row)) < share
    return Entry(row, keep_UT, reserve, total=int(keep_UT.sum()) - surplus)


def rows_of(arena: Arena) -> dict[tuple[int, int], tuple[int, Tensor, Tensor]]:
    """Return reserve, keys and values of every row and head."""
    held = {}
    for s in arena.segments:
        live = slice(s.start, s.start + s.length)
        held[s.row, s.head] = s.need - s.length, arena.buffers.k_RD[live], arena.buffers.v_RD[live]
    return held


@pytest.mark.parametrize("entries", [[entry(4, 0.5, 6)], [entry(1, 0.3, 5), entry(7, 0.0, 0), entry(2, 1.0, 9)]])
def test_an_unread_arena_holds_what_another_one_holds(entries: Sequence[Entry]) -> None:
    k_UTD, v_UTD = torch.randn(2, HEADS, TOKENS, DIM).unbind()
    late = gather_unread(entries, k_UTD, v_UTD, PromptKernels(), PromptLengths())
    other = gather(entries, k_UTD, v_UTD, backends.make_backend("cuda"))
    expected, held = rows_of(other), rows_of(late)
    assert held.keys() == expected.keys()
    for key, (reserve, k_ND, v_ND) in expected.items():
        assert held[key][0] == reserve
        assert torch.equal(held[key][1], k_ND) and torch.equal(held[key][2], v_ND)
    buffers, ends = late.buffers, [s.start + s.capacity for s in late.segments]
    assert buffers.start_S1.tolist() == [*(s.start for s in late.segments), ends[-1]]
    assert buffers.length_S.tolist() == [s.length for s in late.segments]
    assert (
        len(buffers.k_RD) == ends[-1] == sum(s.length for s in late.segments) + HEADS * sum(e.reserve for e in entries)
    ), "no slot without a purpose"
    assert buffers.capacity >= max(s.capacity for s in late.segments)


def test_lengths_of_all_layers_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, copies = PromptLengths(), []
    first, second = lengths.later(torch.tensor([3, 4])), lengths.later(torch.tensor([5]))
    real = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: copies.append(1) or real(self))
    assert second() == [5] and first() == [3, 4] and len(copies) == 1
    assert lengths.later(torch.tensor([6]))() == [6] and len(copies) == 2, "the next prompt"


def test_a_mask_with_more_tokens_than_promised_is_refused() -> None:
    """The tokens that have no room are not written, and reading the lengths raises the error."""
    k_UTD = torch.randn(HEADS, TOKENS, DIM)
    arena = gather_unread([entry(0, 0.5, 0, surplus=20)], k_UTD, k_UTD, PromptKernels(), PromptLengths())
    assert int(arena.buffers.start_S1.max()) <= len(arena.buffers.k_RD)
    with pytest.raises(RuntimeError, match="tokens in a layer, but"):
        _ = arena.segments


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    """Return the tiny model after the engine has tried it, for which it may wait."""
    model = tiny_model()
    generate(model, [prompt(20)], asked()[-1:], max_new_tokens=1)
    return model


def by_kernels(tiny: Tiny, prompts: Any, variants: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[Generation]]:
    """Generate on the cache of a GPU, whose ops are their references on a CPU."""
    with monkeypatch.context() as patch:
        cache = RaggedCache(num_layers(tiny[0]), backends.make_backend("cuda"))
        patch.setattr(decode, "make_cache", lambda *_: cache)
        return generate(tiny, prompts, variants)


def asked() -> list[kvbench.Variant]:
    return [kvbench.Variant(kvbench.load_method(name), budget) for name, budget in NAMES]


def test_a_run_on_the_kernels_keeps_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = by_kernels(tiny, [prompt(290)], asked(), monkeypatch)[0]
    for row, other in zip(ours, generate(tiny, [prompt(290)], asked())[0], strict=True):
        assert row.kept == other.kept and row.token_ids == other.token_ids and row.kept_max == other.kept_max
        assert row.kv_bytes == other.kv_bytes
        assert row.slack_bytes <= other.slack_bytes, "segments share no capacity"


class _Waits(TorchDispatchMode):
    """Fail where an op of the host needs a result of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount"), func
        assert name != "repeat_interleave" or (kwargs or {}).get("output_size") is not None, func
        if name.startswith("index"):
            assert not any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])), func
        return func(*args, **kwargs or {})


@contextmanager
def no_waits(uploads: list[object]) -> Iterator[None]:
    """Fail where the host would wait for a GPU, apart from kernels. Count what is uploaded."""
    with pytest.MonkeyPatch.context() as patch:
        inside: list[bool] = []

        def wait(name: str) -> None:
            real = getattr(Tensor, name)

            def call(self: Tensor, *arguments: Any, **more: Any) -> Any:
                assert inside, f"{name} waits for the device in a layer of a prompt"
                return real(self, *arguments, **more)

            patch.setattr(Tensor, name, call)

        def kernel(name: str) -> None:
            real = getattr(PromptKernels, name)

            def call(*arguments: Any, **more: Any) -> Any:
                inside.append(True)
                with torch.utils._python_dispatch._disable_current_modes():
                    result = real(*arguments, **more)
                inside.pop()
                return result

            patch.setattr(PromptKernels, name, call)

        for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            wait(name)
        for name in ("window_score", "column_sums", "select", "gather"):
            kernel(name)
        real: Callable[..., Tensor] = torch.tensor
        patch.setattr(torch, "tensor", lambda *a, **more: (None if inside else uploads.append(a), real(*a, **more))[1])
        with _Waits():
            yield


@pytest.mark.parametrize("names", [NAMES, *([pair] for pair in NAMES)])
def test_no_layer_of_a_prompt_waits_for_the_device(tiny: Tiny, names: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection and storing queue work. Order and heads of the segments are uploaded once per prompt."""
    uploads: list[object] = []
    real = prefill.PrefillPass._compress

    def compress(self: prefill.PrefillPass, ctx: Any) -> None:
        with no_waits(uploads):
            real(self, ctx)

    monkeypatch.setattr(prefill.PrefillPass, "_compress", compress)
    monkeypatch.setattr(context, "has_nan", lambda x: False)  # as on a GPU, where these two do not look
    monkeypatch.setattr(eviction, "tokens_kept", lambda keep_UT: None)
    variants = [kvbench.Variant(kvbench.load_method(name), budget) for name, budget in names]
    (out,) = by_kernels(tiny, [prompt(290)], variants, monkeypatch)
    assert len(out) == len(names) and all(row.error is None for row in out)
    assert len(uploads) == 2


def test_a_method_that_counts_by_itself_still_waits(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [kvbench.Variant(kvbench.load_method("corm"))]
    ours = by_kernels(tiny, [prompt(290)], variants, monkeypatch)[0]
    assert ours[0].kept == generate(tiny, [prompt(290)], variants)[0][0].kept


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_layer_of_a_prompt_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own check of operations that wait, which knows of most."""
    dims = dict(OmegaConf.load(conf_dir() / "model" / "tiny.yaml").dims) | {"head_dim": 64}
    loaded = kvbench.load_model("tiny", dtype="bfloat16", device="cuda", dims=dims)
    gpu = loaded.model, loaded.tokenizer
    expected = generate(gpu, [prompt(290)], asked())[0]  # also compiles the kernels, and tries torch's attention
    real = prefill.PrefillPass._compress

    def compress(self: prefill.PrefillPass, ctx: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            real(self, ctx)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(prefill.PrefillPass, "_compress", compress)
    for row, before in zip(generate(gpu, [prompt(290)], asked())[0], expected, strict=True):
        assert row.kept_total == before.kept_total and row.kernel == "cuda"
        assert 0 < row.timings.compress_s < row.timings.ttft_s
