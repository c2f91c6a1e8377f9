"""The search for the forms in which a budget in bytes lets a method hold all tokens of a prompt, one for each layer.

A store offers a family of forms, the smallest first. All layers get the largest form with which all of them fit. What
is left goes to the first layers, in their order: as many as fit get the next larger form, and the first that does not
leaves more of its newest tokens as they are, if its store can. This rule is ours. The papers fix their dials instead.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from kvbench.methods.context import LayerContext
from kvbench.methods.fitting import CacheShape, half_bytes, kept_bytes
from kvbench.methods.storage import Store

_TOLERANCE = 1.01  # numbers that are equal may take more than the fewest bytes
_ANY_DIM = 128


@lru_cache(64)
def family(store: Store, dim: int) -> Sequence[Store]:
    """Return the forms of a store for a head dimension, the smallest first."""
    return tuple(store.family(dim))


def idle_fields(store: Store) -> list[str]:
    """Return the fields of a store that were changed, but whose values its family replaces."""
    part: Any = store
    own, idle = family(store, _ANY_DIM), []
    for field in _fields(store):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is not MISSING and getattr(store, field.name) != default:
            with suppress(ValueError):  # a default that does not go with the other fields: the value matters
                if family(replace(part, **{field.name: default}), _ANY_DIM) == own:
                    idle.append(field.name)
    return idle


def _fields(store: Store) -> Sequence[Field[Any]]:
    return fields(store) if is_dataclass(store) else ()


def head_size(store: Store, state: int, span: int, dim: int, dtype: torch.dtype) -> int:
    """Return the bytes of a KV head that holds `span` tokens of a prompt; of tokens that differ, the most.

    Args:
        state: further bytes of each token.
    """
    total = state * span
    for half in store.halves:
        block = 0 if half is None else half.block_bytes(dim, dtype)
        total += half_bytes(half, span, dim, dtype, block)
    return total


def smallest_size(store: Store, state: int, span: int, dim: int, dtype: torch.dtype) -> int:
    """Return the fewest bytes of a KV head that holds `span` tokens of a prompt, whatever the tokens are."""
    smallest = family(store, dim)[0]
    total = head_size(smallest, state, span, dim, dtype)
    for half in smallest.halves:
        if half is not None:
            n = half.encoded(span, span)
            total += half.fewest_bytes(n, dim, dtype) - n // half.block * half.block_bytes(dim, dtype)
    return total


def forms_by_numbers(store: Store, promise: int, state: int, span: int, shape: CacheShape) -> Sequence[Store] | None:
    """Return the form of each layer if the bytes follow from numbers alone; None if the smallest do not fit."""
    sizes = lru_cache(None)(lambda form: shape.heads * head_size(form, state, span, shape.dim, shape.dtype))
    return _forms(store, promise, promise, span, shape, lambda form, layer: sizes(form))


def forms_by_tokens(
    store: Store, promise: int, state: int, contexts: Sequence[LayerContext], shape: CacheShape
) -> Sequence[Store] | None:
    """Return the form of each layer if the bytes depend on the tokens; None if the smallest do not fit."""
    span = contexts[0].num_tokens

    def size(form: Store, layer: int) -> int:
        ctx = contexts[layer]
        keep_UT = torch.ones(ctx.k.shape[:2], dtype=torch.bool, device=ctx.k.device)
        largest = {span: head_size(form, state, span, shape.dim, shape.dtype)}
        return kept_bytes(largest, form, ctx, keep_UT, ctx.k, ctx.v)

    return _forms(store, promise, int(_TOLERANCE * promise), span, shape, size)


def _forms(
    store: Store, promise: int, most: int, span: int, shape: CacheShape, size: Callable[[Store, int], int]
) -> Sequence[Store] | None:
    """Return the form of each layer; None if the smallest take more than `most` bytes.

    Args:
        size: returns the bytes of a form in a layer.
    """
    forms, layers = family(store, shape.dim), range(shape.layers)

    def sizes(index: int) -> list[int]:
        return [size(forms[index], layer) for layer in layers]

    fits, fails = 0, len(forms)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if sum(sizes(middle)) <= promise:
            fits = middle
        else:
            fails = middle
    smaller = sizes(fits)
    free = promise - sum(smaller)
    if sum(smaller) > most:
        return None
    chosen = [forms[fits]] * shape.layers
    if fails == len(forms):
        return chosen
    for layer, (own, more) in enumerate(zip(smaller, sizes(fails), strict=True)):
        if more - own > free:
            chosen[layer] = _leaving(forms[fits], span, partial(_at, size, layer), own + free)
            break
        chosen[layer] = forms[fails]
        free -= more - own
    return chosen


def _at(size: Callable[[Store, int], int], layer: int, form: Store) -> int:
    return size(form, layer)


def _leaving(form: Store, span: int, size: Callable[[Store], int], most: int) -> Store:
    """Return the form that leaves as many of a layer's newest tokens as they are as fit into `most` bytes."""
    fits, fails = 0, span + 1
    while fails - fits > 1 and form.leaving(1) != form:
        middle = (fits + fails) // 2
        if size(form.leaving(middle)) <= most:
            fits = middle
        else:
            fails = middle
    return form.leaving(fits) if fits else form


def settings_of(store: Store, stores: Sequence[Store], dim: int) -> dict[str, list[Any]]:
    """Return {field: its value in each layer} of the fields that the family of a store sets, for a record.

    Args:
        stores: the form of each layer.
    """
    forms = (family(store, dim)[0], family(store, dim)[-1], store.leaving(1))
    own = {field.name: getattr(store, field.name) for field in _fields(store)}
    names = [name for name, value in own.items() if any(getattr(form, name) != value for form in forms)]
    return {name: [getattr(of_layer, name) for of_layer in stores] for name in names}
