"""ThinK and KIVI together: one store acts on what the other leaves; against the naive twin, for ragged heads.

Shape suffixes: H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.common.paths import conf_dir
from kvbench.methods.context import LayerContext
from kvbench.methods.load import load
from kvbench_kernels import backends
from tests.reference import think, think_kivi


def drawn(seed: int) -> tuple[LayerContext, Tensor, dict[str, Any]]:
    """Return a layer, a ragged mask, and dials."""
    g, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    heads, group, tokens = int(rng.integers(1, 4)), (1, 3, 4)[seed % 3], int(rng.integers(20, 90))
    q, k, v = (torch.randn(h, tokens, 32, generator=g) for h in (heads * group, heads, heads))
    keep_UT = torch.rand(heads, tokens, generator=g) < torch.rand(heads, 1, generator=g) + 0.2
    keep_UT[:, -1] = True
    size = int(rng.choice([16, 32]))
    dials = {"ratio": float(rng.choice([0.1, 0.4, 0.9])), "queries": int(rng.integers(1, 40)), "group_size": size}
    return LayerContext(q, k, v), keep_UT, dials | {"bits": (2, 4, 8)[seed % 3], "residual": size}


@pytest.mark.parametrize("kernel", ["torch", "cpu"])
@pytest.mark.parametrize("seed", range(6))
def test_attention_is_that_of_the_restored_tokens(seed: int, kernel: str) -> None:
    """The dense path and the packed kernel agree with a loop, over the prompt and beyond the next blocks."""
    ctx, keep_UT, dials = drawn(seed)
    store: Any = kvbench.load_method("think+kivi", **dials).store
    side = store.prepare(ctx, keep_UT, ctx.k, ctx.v)
    heads, group = keep_UT.shape[0], ctx.group
    size = dials["group_size"], dials["residual"]
    seen = [[x[u, keep_UT[u]].numpy() for u in range(heads)] for x in (ctx.k, ctx.v)]
    weights_UD = think_kivi.channel_weights(ctx.q[:, -dials["queries"] :].numpy(), seen[0], dials["residual"])
    for channels, weights_D in zip(side[0].head.tolist(), weights_UD, strict=True):
        must, may, count = think.dropped(weights_D.round(5), dials["ratio"])
        gone = set(range(32)) - set(channels)
        assert must <= gone <= must | may and len(gone) == count
    cache = RaggedCache(1, backends.make_backend(kernel))
    cache.add(0, [Entry(0, keep_UT, 40, store=store, side=side)], ctx.k, ctx.v)
    g, kept = torch.Generator().manual_seed(seed), keep_UT.sum(1).tolist()
    for _ in range(dials["residual"] + 3):
        q, k, v = (torch.randn(1, h, 1, 32, generator=g) for h in (heads * group, heads, heads))
        out_HD = cache.attend(0, [0], q, k, v, 0.2)[0, :, 0]
        for u in range(heads):
            restored = think_kivi.restored(
                seen[0][u], seen[1][u], kept[u], side[0].head[u].tolist(), dials["bits"], *size
            )
            k_TD, v_TD = (np.concatenate([x, y[0, u].numpy()]) for x, y in zip(restored, (k, v), strict=True))
            for h in range(u * group, (u + 1) * group):
                logits = k_TD @ q[0, h, 0].numpy() * 0.2
                weights = np.exp(logits - logits.max())
                expected = weights @ v_TD / weights.sum()
                np.testing.assert_allclose(out_HD[h].numpy(), expected, rtol=2e-3, atol=2e-4)
            seen[0][u], seen[1][u] = (
                np.concatenate([x, y[0, u].numpy()]) for x, y in ((seen[0][u], k), (seen[1][u], v))
            )


@pytest.mark.parametrize("name", ["think+kivi", "snapkv+think+kivi", "ada_snapkv+think+kivi", "snapkv+kivi+think"])
def test_bytes_of_an_answer_are_those_of_the_formula(name: str) -> None:
    """Equal to 1 %; ragged and masked caches give the same tokens; both stores save something."""
    loaded, budget = kvbench.load_model("tiny"), None if name == "think+kivi" else 300
    ids = torch.randint(3, 250, (500,), generator=torch.Generator().manual_seed(1)).tolist()
    names = [name, name.replace("+think", "").replace("think+", ""), name.replace("+kivi", "")]
    variants = [kvbench.Variant(kvbench.load_method(each), budget) for each in names]
    outs = [
        kvbench.generate(loaded.model, loaded.tokenizer, [ids], variants, max_new_tokens=4, stop_ids=[], cache=cache)[0]
        for cache in ("ragged", "masked")
    ]
    assert [out.token_ids for out in outs[0]] == [out.token_ids for out in outs[1]]
    both, *alone = outs[0]
    dim = loaded.model.config.head_dim
    formula = sum(think_kivi.head_bytes(n, dim, 0.4, 2, 32, 128, 4) for layer in both.kept for n in layer)
    assert both.kv_bytes == pytest.approx(formula, rel=0.01)
    assert both.kv_bytes < 0.97 * min(out.kv_bytes for out in alone)


@pytest.mark.parametrize(
    ("name", "budget"), [("think+kivi", "0.15B"), ("think+kivi", "0.3B"), ("ada_snapkv+think+kivi", "0.1B")]
)
def test_a_budget_in_bytes_is_kept(name: str, budget: str) -> None:
    loaded = kvbench.load_model("tiny")
    ids = torch.randint(3, 250, (900,), generator=torch.Generator().manual_seed(2)).tolist()
    variants = [
        kvbench.Variant(kvbench.load_method(method), given) for method, given in ((name, budget), ("fullkv", None))
    ]
    held, full = kvbench.generate(loaded.model, loaded.tokenizer, [ids], variants, max_new_tokens=1, stop_ids=[])[0]
    assert held.kv_bytes / full.kv_bytes == pytest.approx(float(budget[:-1]), rel=0.01)


def test_decode_policies_evict_from_both_stores_together() -> None:
    loaded = kvbench.load_model("tiny")
    ids = torch.randint(3, 250, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    method = kvbench.load_method("h2o_decode+think+kivi", group_size=8, residual=16)
    outs = [
        kvbench.generate(
            loaded.model,
            loaded.tokenizer,
            [ids],
            [kvbench.Variant(method, 90)],
            max_new_tokens=40,
            stop_ids=[],
            cache=c,
        )[0][0]
        for c in ("ragged", "masked")
    ]
    assert outs[0].token_ids == outs[1].token_ids and outs[0].kept_max == outs[1].kept_max == 90


def test_the_order_of_the_names_does_not_matter() -> None:
    assert kvbench.load_method("kivi+think").name == "think+kivi"
    assert kvbench.load_method("kivi+snapkv+think") == kvbench.load_method("snapkv+think+kivi")
    assert "recent" not in kvbench.load_method("think+kivi").dials


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("think+qaq", {}, "method=think+qaq: think and qaq set store, and a method has one"),
        ("think+kivi", {"ratio": 2.0}, "method.ratio=2.0: must be at most 0.99"),
        ("think+kivi", {"recent": 8}, "method.recent=8: think+kivi has no dial 'recent'"),
    ],
)
def test_a_mistake_is_one_line(name: str, dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method(name, **dials)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_method_of_ones_own_may_give_and_evict(tmp_path: Path) -> None:
    """Its other parts stay; of two dials with one name, one must be renamed."""
    for name in ("snapkv", "think", "kivi"):
        (tmp_path / f"{name}.yaml").write_text((conf_dir() / "method" / f"{name}.yaml").read_text())
    for name, dial in (("mine", "ratio"), ("other", "bits")):
        store = f"{{_target_: kvbench.methods.store.think.Think, ratio: '${{..{dial}}}'}}"
        given = f"{{_target_: kvbench.methods.store.think.ThinkKeys, ratio: '${{...{dial}}}', queries: 8}}"
        lines = ["use: snapkv", f"name: {name}", f"{dial}: 0.5", f"store: {store}", f"gives: {{channels: {given}}}"]
        (tmp_path / f"{name}.yaml").write_text("\n".join(lines))
    method = load(tmp_path, "mine+kivi")
    assert method.name == "mine+kivi" and method.evicts and "ThinkKeys(ratio=0.5, queries=8" in repr(method.store)
    with pytest.raises(ValueError, match="other and kivi both have a dial bits; rename one"):
        load(tmp_path, "other+kivi")
