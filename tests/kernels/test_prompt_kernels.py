"""Methods that score and choose by kernels, and a cache that is filled by them: the same tokens as by torch."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from omegaconf import OmegaConf

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.common.paths import conf_dir
from kvbench.engine import decode
from kvbench.engine.caches import num_layers
from kvbench.methods.base import Score
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

    monkeypatch.setattr(decode, "make_cache", make)
    with ops.emulated(build.host()):
        outs = kvbench.generate(tiny.model, tiny.tokenizer, prompts, variants, **settings)
    assert result and all(generation.kernel == "cuda" for of_prompt in outs for generation in of_prompt)
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
