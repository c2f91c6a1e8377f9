"""Budgets in bytes of methods that keep every token: the forms that they choose, and what is held under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvbench
from kvbench.methods.allowance import allowed, check_reach
from kvbench.methods.budgets import ByteShare
from kvbench.methods.fitting import CacheShape, promised_bytes
from kvbench.methods.storage import Half, Store
from kvbench.methods.store.affine import PerToken
from kvbench.methods.store_fitting import family, head_size, idle_fields, smallest_size
from kvbench.run.record import broken_promise
from tests.helpers.methods import shipped
from tests.helpers.tiny_engine import Tiny, generate, prompt, tiny_model

SHAPE = CacheShape(layers=6, heads=2, query_heads=4, dim=32, dtype=torch.float32)
ALONE = [name for name, method in shipped().items() if method.fits_forms]
NUMBERED = [name for name in ALONE if not shipped()[name].store.varies]  # type: ignore[union-attr]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def store_of(name: str, **dials: Any) -> Store:
    store = kvbench.load_method(name, **dials).store
    assert store is not None
    return store


def test_stores_that_keep_every_token_are_among_the_methods() -> None:
    assert {"kivi", "qaq", "think"} <= set(ALONE)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("dim", [16, 80, 128])
def test_a_family_begins_with_the_smallest_and_ends_with_the_largest(name: str, dim: int) -> None:
    store = store_of(name, **({"group_size": 16, "residual": 64} if name == "kivi" else {}))
    forms = family(store, dim)
    sizes = [head_size(form, 0, 500, dim, torch.bfloat16) for form in forms]
    assert len(set(forms)) == len(forms) >= 2
    if store.varies:
        assert smallest_size(store, 0, 500, dim, torch.bfloat16) < min(sizes)
    else:
        assert min(sizes) == sizes[0] == smallest_size(store, 0, 500, dim, torch.bfloat16) < sizes[-1] == max(sizes)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(NUMBERED),
    layers=st.integers(2, 48),
    heads=st.integers(1, 8),
    dim=st.sampled_from([32, 64, 96, 128]),
    dtype=st.sampled_from(DTYPES),
    span=st.integers(200, 9000),
    share=st.floats(0.05, 1.0),
)
def test_chosen_forms_take_almost_all_that_was_promised(
    name: str, layers: int, heads: int, dim: int, dtype: torch.dtype, span: int, share: float
) -> None:
    """The rest is less than 1 %, or the promise is out of reach, and then a message says on which side."""
    shape, method = CacheShape(layers, heads, heads, dim, dtype), kvbench.load_method(name)
    budget, store = ByteShare(share), store_of(name)
    promise = promised_bytes(budget, span, shape)
    if smallest_size(store, 0, span, dim, dtype) * shape.segments > promise:
        with pytest.raises(ValueError, match=rf"^budget={share}B: {name} takes at least 0[^\n]*larger budget$"):
            allowed(method, budget, span, shape)
        return
    allowance = allowed(method, budget, span, shape)
    assert allowance is not None and allowance.tokens == span and len(allowance.stores) == layers
    held = sum(heads * head_size(form, 0, span, dim, dtype) for form in allowance.stores)
    assert held <= promise
    if head_size(family(store, dim)[-1], 0, span, dim, dtype) * shape.segments < 0.99 * promise:
        with pytest.raises(ValueError, match=rf"^budget={share}B: {name} holds all [^\n]*$"):
            check_reach(method, budget, span, shape)
    else:
        check_reach(method, budget, span, shape)
        assert held >= 0.99 * promise


@pytest.mark.parametrize(
    ("name", "field", "shares"),
    [
        ("kivi", "bits", (0.33, 0.34, 0.36)),
        ("kivi", "residual", (0.17, 0.19, 0.215)),
        ("think", "ratio", (0.6, 0.77, 0.81, 0.9)),
    ],
)
def test_the_first_layers_get_no_smaller_form(name: str, field: str, shares: tuple[float, ...]) -> None:
    for share in shares:
        allowance = allowed(kvbench.load_method(name), ByteShare(share), 700, SHAPE)
        assert allowance is not None
        values = [getattr(form, field) for form in allowance.stores]
        assert values == sorted(values, reverse=field != "ratio") and len(set(values)) == 2


@pytest.mark.parametrize("name", ["kivi", "think", "snapkv+kivi", "ada_snapkv+think"])
def test_bytes_that_cannot_be_used_are_refused_from_one_percent_on(name: str) -> None:
    method = kvbench.load_method(name)
    assert method.store is not None
    form = method.store if method.evicts else family(method.store, SHAPE.dim)[-1]
    most = head_size(form, 0, 700, SHAPE.dim, SHAPE.dtype) * SHAPE.segments / (700 * SHAPE.segments * SHAPE.token_bytes)
    check_reach(method, ByteShare(most / 0.9902), 700, SHAPE)
    with pytest.raises(ValueError, match=r"holds all 700 tokens"):
        check_reach(method, ByteShare(most / 0.9898), 700, SHAPE)


@pytest.mark.parametrize(("name", "field"), [("kivi", "extra"), ("think", "recent")])
def test_a_layer_leaves_as_many_tokens_as_fit(name: str, field: str) -> None:
    """With one token more in full precision, the layer between the two forms would exceed the promise."""
    method, seen = kvbench.load_method(name), 0
    for share in (0.3, 0.33, 0.36, 0.41, 0.6, 0.77, 0.81, 0.9):
        try:
            allowance = allowed(method, ByteShare(share), 700, SHAPE)
        except ValueError:
            continue
        assert allowance is not None
        usual = getattr(store_of(name), field)
        more = [
            replace(form, **{field: getattr(form, field) + (getattr(form, field) > usual)})  # type: ignore[type-var]
            for form in allowance.stores
        ]
        seen += more != list(allowance.stores)
        sizes = [
            sum(SHAPE.heads * head_size(form, 0, 700, SHAPE.dim, SHAPE.dtype) for form in forms)
            for forms in (allowance.stores, more)
        ]
        assert sizes[0] <= promised_bytes(ByteShare(share), 700, SHAPE)
        assert more == list(allowance.stores) or sizes[1] > promised_bytes(ByteShare(share), 700, SHAPE)
    assert seen > 1


@pytest.mark.parametrize(
    ("name", "dials", "hint"),
    [("qaq", {"error": 0.5}, "method.error=0.5"), ("think", {"ratio": 0.5}, "method.ratio=0.5")],
)
def test_a_dial_that_the_budget_chooses_is_refused(name: str, dials: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=rf"^{hint}: {name} has .* chosen by budget=0.3B; [^\n]*$"):
        allowed(kvbench.load_method(name, **dials), "0.3B", 700, SHAPE)


@pytest.mark.parametrize(
    ("name", "dials"),
    [("qaq", {"least": 5, "most": 8}), ("kivi", {"group_size": 48, "residual": 96})],
)
def test_dials_that_need_each_other_go_with_a_budget_in_bytes(name: str, dials: dict[str, Any]) -> None:
    """Each of them alone does not go with the default of the other."""
    assert allowed(kvbench.load_method(name, **dials), "0.6B", 700, SHAPE._replace(dim=96)) is not None


@dataclass(frozen=True)
class NoDefaults(Store):
    """KIVI with a setting that has no default, and with one that its family replaces."""

    bits: int
    tags: Sequence[str] = field(default_factory=tuple)
    spare: int = 0

    @property
    def keys(self) -> Half:
        return PerToken(self.bits, 16, 1 + self.spare)

    def family(self, dim: int) -> list[NoDefaults]:
        return [replace(self, spare=spare) for spare in (900, 0)]


def test_fields_without_a_default_are_never_idle() -> None:
    assert idle_fields(NoDefaults(4)) == idle_fields(NoDefaults(4, ("a",))) == []
    assert idle_fields(NoDefaults(4, ("a",), 3)) == ["spare"]


def test_think_drops_a_channel_more_in_each_form() -> None:
    """At every head dimension, 100 included, of which 99 % are a whole number of channels."""
    for dim in (*range(4, 260), 300, 512):
        dropped = [int(form.ratio * dim) for form in store_of("think").family(dim)]
        assert dropped == [*range(int(0.99 * dim), 0, -1)], dim


def test_dials_of_kivi_are_limits() -> None:
    """More bits than the dial's, and no more tokens in full precision than the dial's."""
    allowance = allowed(kvbench.load_method("kivi", bits=4, residual=64), "0.3B", 700, SHAPE)
    assert allowance is not None
    assert {form.bits for form in allowance.stores} == {4, 8} and {form.residual for form in allowance.stores} == {64}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^budget=0.15B: kivi takes at least 0.2"):
        allowed(kvbench.load_method("kivi", bits=4), "0.15B", 700, SHAPE)


@pytest.mark.parametrize(
    ("name", "dials", "shares", "lengths"),
    [
        ("kivi", {}, ("0.25B", "0.3B"), (331, 257)),
        ("think", {}, ("0.8B",), (100, 150)),
        ("qaq", {}, ("0.29B", "0.3B"), (90, 120)),
        ("fullkv+scope+kivi", {}, ("0.5B",), (331,)),
    ],
)
def test_what_is_held_is_what_was_promised(
    tiny: Tiny, name: str, dials: dict[str, Any], shares: tuple[str, ...], lengths: tuple[int, ...]
) -> None:
    """Measured in the cache, for rows of several prompts at once, with and without a decode policy."""
    variants = [kvbench.Variant(kvbench.load_method(name, **dials), share) for share in shares]
    prompts = [prompt(length, seed) for seed, length in enumerate(lengths)]
    together = generate(tiny, prompts, variants, max_prompts=2, max_new_tokens=4)
    for ids, rows in zip(prompts, together, strict=True):
        for variant, out in zip(variants, rows, strict=True):
            assert out.budget_bytes is not None and out.held_bytes is not None and out.forms
            assert broken_promise(variant, out) is None
            assert 0.99 * out.budget_bytes <= out.held_bytes <= out.budget_bytes, str(variant)
            assert out.kept_mean == out.span == len(ids)
            assert all(len(values) == len(out.kept) for values in out.forms.values())


def test_the_choice_depends_on_the_prompt_alone(tiny: Tiny) -> None:
    """The forms and tokens of a row are the same next to another prompt, and in the masked cache."""
    variants = [
        kvbench.Variant(kvbench.load_method(name), share) for name, share in (("qaq", "0.3B"), ("kivi", "0.4B"))
    ]
    ids, other = prompt(120), prompt(111, seed=1)
    ragged, _ = generate(tiny, [ids, other], variants, max_prompts=2, max_new_tokens=3)
    (masked,) = generate(tiny, [ids], variants, cache="masked", max_new_tokens=3)
    for ours, theirs in zip(ragged, masked, strict=True):
        assert (ours.forms, ours.token_ids) == (theirs.forms, theirs.token_ids)


def test_a_store_without_a_family_is_refused() -> None:
    class Fixed(Store):
        """A store with nothing to choose."""

    method = replace(kvbench.load_method("kivi"), store=Fixed())
    with pytest.raises(ValueError, match=r"^budget=0.3B: kivi keeps every token, and its dials decide the bytes"):
        allowed(method, "0.3B", 200, SHAPE)
