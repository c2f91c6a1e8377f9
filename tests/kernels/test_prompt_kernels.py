"""Methods that score and choose by kernels, and a cache that is filled by them: the same tokens as by torch."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.common.paths import conf_dir
from kvbench.engine import decode
from kvbench.engine.caches import num_layers
from kvbench.engine.prompt_attention import attend_with_lse
from kvbench.methods.base import LayerContext, Score
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.window_attention import WindowAttention
from kvbench_kernels import backends, build, ops
from kvbench_kernels.ops.prompt import PromptKernels
from tests.helpers.methods import facts, load, shipped, with_parts

DIMS = dict(OmegaConf.load(conf_dir() / "model" / "tiny.yaml").dims)


@pytest.mark.parametrize("name", [name for name, method in shipped().items() if method.evicts])
def test_every_method_keeps_the_same_tokens(name):
    """On a CPU the ops are their references; what a method asks them for has to be what it does itself."""
    method = load(name, 3, 6)
    g = torch.Generator().manual_seed(7)
    for tokens, budget in ((150, 60), (333, 0.3)):
        layers = [
            tuple(torch.randn(heads, tokens, 64, generator=g) for heads in (6, 2, 2)) for _ in range(3)
        ]  # q, k, v
        given = facts(method, *layers[0][:2])
        plain, by_kernels = (
            method.keep_layers(layers, budget=budget, kernels=k, **given) for k in (None, PromptKernels())
        )
        for ours, theirs in zip(plain, by_kernels, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b), (tokens, budget)


def test_the_kernels_are_asked(monkeypatch):
    """Or the test above compares torch with itself."""
    asked = []
    for op in ("window_score", "column_sums", "select"):
        real = getattr(PromptKernels, op)
        monkeypatch.setattr(PromptKernels, op, lambda *a, op=op, real=real, **k: asked.append(op) or real(*a, **k))
    q, k = torch.randn(4, 90, 64), torch.randn(2, 90, 64)
    for name in ("ada_snapkv", "h2o"):
        kvbench.load_method(name).keep(q, k, k, budget=40, kernels=PromptKernels())
    assert asked == ["window_score", "select", "column_sums", "select"]


@pytest.mark.gxx
def test_scores_by_the_prefill_are_those_of_their_own_pass(monkeypatch):
    """On the emulated kernels, with the log-sum-exp of torch's fused attention; then there is no first pass."""
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, 150, 64, generator=g).bfloat16() for heads in (6, 2, 2))
    _, lse_1HT = attend_with_lse(q, k, v, 0.125)
    assert lse_1HT is not None
    with ops.emulated(build.host()):
        alone, given = (
            LayerContext(q[0], k[0], v[0], scaling=0.125, kernels=PromptKernels(), lse_HT=lse_HT)
            for lse_HT in (None, lse_1HT[0])
        )
        for part in (WindowAttention(window=8), WindowAttention(window=33, pooling="none"), ColumnSums()):
            torch.testing.assert_close(given.score(part), alone.score(part), rtol=3e-4, atol=0)
        monkeypatch.setattr("kvbench_kernels.ops.prompt.kvb", SimpleNamespace(column_sums=torch.ops.kvb.column_sums))
        again = LayerContext(q[0], k[0], v[0], scaling=0.125, kernels=PromptKernels(), lse_HT=lse_1HT[0])
        assert torch.equal(again.score(ColumnSums()), given.score(ColumnSums()))


def test_scores_that_kernels_do_not_read_go_by_torch(monkeypatch):
    """A user's score part may return float64, say; the compiled kernel refuses all but float32."""

    class Exact(Score):
        unscored = 0

        def __call__(self, ctx):
            return torch.linspace(0, 1, ctx.num_tokens, dtype=torch.float64).expand(ctx.num_kv_heads, -1)

    method = kvbench.load_method("ada_snapkv")
    ours = with_parts(method, score=Exact())
    monkeypatch.setattr(PromptKernels, "select", None)
    q, k = torch.randn(4, 90, 64), torch.randn(2, 90, 64)
    kept = ours.keep(q, k, k, budget=40, kernels=PromptKernels())
    assert [head.tolist() for head in kept] == [list(range(50, 90))] * 2


@pytest.mark.slow
@pytest.mark.gxx
def test_a_whole_run_on_the_emulated_kernels(monkeypatch):
    """Prefill scores, selection, gathering, decoding, growth: all by the kernels' own code, in bfloat16."""
    small = {"num_hidden_layers": 2, "head_dim": 64}
    tiny = kvbench.load_model("tiny", dtype="bfloat16", dims=DIMS | small)
    prompts = [list(range(5, 75)), list(range(40, 140))]
    variants = [("snapkv", 40), ("ada_pyramidkv", 44), ("h2o", 30), ("fullkv", None)]
    settings = {"max_new_tokens": 6, "stop_ids": [], "max_prompts": 2}
    expected = kvbench.generate(tiny.model, tiny.tokenizer, prompts, variants, kernel="torch", **settings)
    result = []

    def make(*_):
        result.append(RaggedCache(num_layers(tiny.model), backends.make_backend("cuda")))
        return result[-1]

    given = []
    for op in ("window_score", "column_sums"):
        real = getattr(PromptKernels, op)

        def score(*arguments, real=real, **more):
            given.append(more["lse_HW" if "lse_HW" in more else "lse_HT"] is not None)
            return real(*arguments, **more)

        monkeypatch.setattr(PromptKernels, op, score)
    monkeypatch.setattr(decode, "make_cache", make)
    with ops.emulated(build.host()):
        outs = kvbench.generate(tiny.model, tiny.tokenizer, prompts, variants, **settings)
    assert result and all(generation.kernel == "cuda" for of_prompt in outs for generation in of_prompt)
    assert given and all(given), "scores do not get the log-sum-exp of the prefill"
    for ours, theirs in zip(chain(*outs), chain(*expected), strict=True):
        assert ours.kept == theirs.kept
        assert ours.token_ids == theirs.token_ids


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_whole_run_on_the_gpu(dtype):
    """By our kernels and by torch's: the same kept tokens, but for near ties, and the same text on clear choices."""
    tiny = kvbench.load_model("tiny", dtype=dtype, device="cuda", dims=DIMS | {"head_dim": 64})
    prompts = [list(range(5, 255)), list(range(40, 240))]
    variants = [("snapkv", 80), ("ada_pyramidkv", 88), ("h2o", 60), ("streaming_llm", 50), ("fullkv", None)]
    settings = {"max_new_tokens": 16, "stop_ids": [], "max_prompts": 2}
    expected, outs = (
        [*chain(*kvbench.generate(tiny.model, tiny.tokenizer, prompts, variants, kernel=kernel, **settings))]
        for kernel in ("sdpa", "cuda")
    )
    for ours, theirs in zip(outs, expected, strict=True):
        assert ours.kept_total == theirs.kept_total
    same = sum(ours.token_ids == theirs.token_ids for ours, theirs in zip(outs, expected, strict=True))
    assert same >= 0.7 * len(outs)
