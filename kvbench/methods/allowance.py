"""The tokens that a budget of any kind allows on a prompt.

A budget in bytes allows as many tokens as fit: keys and values as the method's store holds them, and what its decode
policy knows of each token. Where the bytes depend on scores, because heads hold different numbers of tokens or tokens
take different bytes, they are known when all layers of the prompt are.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.methods.budgets import Allowance, ByteShare, check_budget
from kvbench.methods.composed import Composed
from kvbench.methods.context import LayerContext
from kvbench.methods.fitting import (
    PLACES,
    CacheShape,
    Search,
    even,
    head_bytes,
    highest,
    kept_bytes,
    numbers_bytes,
    promised_bytes,
    state_bytes,
)
from kvbench.methods.storage import Store
from kvbench.methods.store_fitting import (
    family,
    forms_by_numbers,
    forms_by_tokens,
    head_size,
    idle_fields,
    smallest_size,
)


def check_bytes(method: Composed, budget: object) -> None:
    """Raise ValueError if the method cannot keep the promise of a budget in bytes.

    A method that takes no budget is not refused, unless its store could be asked for the bytes.
    """
    if not isinstance(budget, ByteShare):
        return
    name, decoding = method.name, method.decoding
    if method.look is not None:
        raise ValueError(
            f"budget={budget}: {name} keeps every token and saves no memory; give the tokens that a step reads, such "
            "as budget=128 or budget=0.2"
        )
    if method.store is not None and not method.evicts:
        _check_store(method, budget)
    if method.promises is None:
        return
    if not method.exact:
        raise ValueError(f"budget={budget}: {name} rounds like its reference; choose method.allocation=exact")
    if method.keeps_prompt:
        raise ValueError(
            f"budget={budget}: {name} keeps the whole prompt until decoding begins; choose method.phase=both, or give "
            "tokens or a share such as budget=0.2"
        )
    if method.feed is not None and decoding is not None and (decoding.buffer or decoding.budget is not None):
        dial = "buffer=0" if decoding.buffer else "decode_budget=null"
        raise ValueError(f"budget={budget}: a fed prompt ends with what its policy holds; choose method.{dial}")


def _check_store(method: Composed, budget: ByteShare) -> None:
    """Raise ValueError if the budget cannot choose the forms of all tokens, or would replace the value of a dial."""
    assert method.store is not None
    if not method.store.has_family:
        dials = ", ".join(f"method.{key}={value}" for key, value in method.dials.items())
        raise ValueError(
            f"budget={budget}: {method.name} keeps every token, and its dials decide the bytes ({dials}); change them "
            f"and leave out the budget, or write method=snapkv+{method.name} to keep as many tokens as the bytes allow"
        )
    for field in idle_fields(method.store):
        dial = method.dial_of.get(("store", field), field)
        raise ValueError(
            f"method.{dial}={getattr(method.store, field)}: {method.name} has {dial} chosen by budget={budget}; leave "
            "out one of them"
        )


def allowed(method: Composed, budget: object, span: int, shape: CacheShape) -> Allowance | None:
    """Return the tokens that a budget allows on a prompt of `span` tokens; None if no budget applies.

    If `fits_late`, this is an estimate with equal heads, or without the forms of the layers.

    Raises:
        ValueError: the budget is no budget, leaves no room next to the tokens that are always kept, or promises bytes
            that the method cannot promise.
    """
    checked = None if budget is None else check_budget(budget)
    check_bytes(method, checked)
    if method.fits_forms and isinstance(checked, ByteShare):
        return _allowed_forms(method, checked, span, shape)
    if method.promises is None:
        return None
    if not isinstance(checked, ByteShare):
        tokens = method.tokens(checked, span)
        return None if tokens is None else Allowance(tokens)
    table, promise = _table(method, span, shape), promised_bytes(checked, span, shape)
    if table[span] * shape.segments <= promise:
        fitting: Allowance | None = Allowance(span)
    elif method.store is None:
        fitting = Allowance(*divmod(promise // table[1], shape.segments))
    elif fits_late(method, checked):
        fitting = even(table, promise, shape)
    else:
        search = _search(method, table, promise, shape, highest(table, promise, shape))
        fitting = search.largest(lambda tried: numbers_bytes(table, method.evicting, tried, shape))
    return _with_room(method, checked, fitting, even(table, promise, shape), span)


def check_reach(method: Composed, budget: object, span: int, shape: CacheShape) -> None:
    """Raise ValueError if the method would hold the whole prompt in less than 99 % of the bytes of its budget."""
    if not isinstance(budget, ByteShare) or not method.takes(budget):
        return
    store = method.store
    if store is not None and method.fits_forms:
        store = family(store, shape.dim)[-1]
    whole = _of_head(method, store, span, shape) * shape.segments
    promise = promised_bytes(budget, span, shape)
    if whole < 0.99 * promise:
        share = whole / (span * shape.segments * shape.token_bytes)
        raise ValueError(
            f"budget={budget}: {method.name} holds all {span} tokens of a prompt in {share:.3g} of the full cache's "
            "bytes, so it cannot use as many; give a smaller budget, or a store that keeps more of each token"
        )


def fits_late(method: Composed, budget: object) -> bool:
    """Return True if the tokens that a budget allows are not known before all layers of the prompt are."""
    store, eviction = method.store, method.eviction
    if isinstance(budget, str):
        budget = check_budget(budget)
    if not isinstance(budget, ByteShare) or store is None:
        return False
    if eviction is None:
        return store.has_family and store.varies
    if not eviction.counted:
        return False
    return store.varies or not eviction.by_numbers


def fit(
    method: Composed,
    budget: ByteShare,
    contexts: Sequence[LayerContext],
    statistics: Sequence[Tensor] | None,
    shape: CacheShape,
) -> Allowance:
    """Return the tokens that a budget in bytes allows on a prompt of which all layers are known, or their forms.

    Raises:
        ValueError: it leaves no room next to the tokens that are always kept, or is less than all tokens take.
    """
    assert method.store is not None
    store, span = method.store, contexts[0].num_tokens
    promise = promised_bytes(budget, span, shape)
    if method.fits_forms:
        stores = forms_by_tokens(store, promise, _state(method, shape), contexts, shape)
        return Allowance(span, 0, _fitting(method, budget, stores, span, shape))
    table = _table(method, span, shape)

    def bytes_of(tried: Allowance) -> int:
        totals = method.layer_totals(
            tried.tokens,
            extra=tried.extra,
            span=span,
            layers=shape.layers,
            heads=shape.heads,
            query_heads=shape.query_heads,
            statistics=statistics,
        )
        assert totals is not None
        return sum(layer_bytes(ctx, tried.tokens, total) for ctx, total in zip(contexts, totals, strict=True))

    def layer_bytes(ctx: LayerContext, tokens: int, total: int) -> int:
        if not method.drops(tokens, span):
            keep_UT = torch.ones(ctx.k.shape[:2], dtype=torch.bool, device=ctx.k.device)
        elif not store.varies:
            return sum(table[n] for n in method.evicting.kept_counts(ctx, tokens, total))
        else:
            keep_UT = method.evicting.mask(ctx, tokens, total)
        return kept_bytes(table, store, ctx, keep_UT, *method.merged(ctx, keep_UT))

    most = span if store.varies else highest(table, promise, shape)
    fitting = _search(method, table, promise, shape, most).largest(bytes_of, PLACES)
    return _with_room(method, budget, fitting, even(table, promise, shape), span)


def _table(method: Composed, span: int, shape: CacheShape) -> Sequence[int]:
    return head_bytes(method.store, _state(method, shape), span, shape.dim, shape.dtype)


def _state(method: Composed, shape: CacheShape) -> int:
    return state_bytes(method.store, method.decoding, shape.dim, shape.dtype)


def _of_head(method: Composed, store: Store | None, span: int, shape: CacheShape) -> int:
    """Return the bytes of a KV head that holds the whole prompt in a form."""
    if store is None:
        return _table(method, span, shape)[span]
    return head_size(store, _state(method, shape), span, shape.dim, shape.dtype)


def _allowed_forms(method: Composed, budget: ByteShare, span: int, shape: CacheShape) -> Allowance:
    """Return the form of each layer where every token stays; none yet if they depend on the tokens."""
    assert method.store is not None
    store, promise, state = method.store, promised_bytes(budget, span, shape), _state(method, shape)
    if not store.varies:
        stores = forms_by_numbers(store, promise, state, span, shape)
        return Allowance(span, 0, _fitting(method, budget, stores, span, shape))
    if smallest_size(store, state, span, shape.dim, shape.dtype) * shape.segments > promise:
        _fitting(method, budget, None, span, shape)
    return Allowance(span)


def _fitting(
    method: Composed, budget: ByteShare, stores: Sequence[Store] | None, span: int, shape: CacheShape
) -> Sequence[Store]:
    """Return the forms. Raises ValueError if there are none, because the smallest takes more than the budget."""
    assert method.store is not None
    if stores is not None:
        return stores
    least = smallest_size(method.store, _state(method, shape), span, shape.dim, shape.dtype)
    raise ValueError(
        f"budget={budget}: {method.name} takes at least {least / (span * shape.token_bytes):.3g} of the full cache's "
        f"bytes for a prompt of {span} tokens; give a larger budget"
    )


def _search(method: Composed, table: Sequence[int], promise: int, shape: CacheShape, most: int) -> Search:
    least = min(method.evicting.least(), len(table) - 1)
    return Search(promise, shape.segments, least, max(least, most))


def _with_room(
    method: Composed, budget: ByteShare, fitting: Allowance | None, fallback: Allowance, span: int
) -> Allowance:
    """Return a budget that leaves the method a choice. Raises ValueError naming the dials to change if none fits."""
    tokens = min(fallback.tokens, method.evicting.least() - 1) if fitting is None else fitting.tokens
    if tokens < span or method.decode is not None:
        method.check_room(tokens, f"{budget} (of {span} tokens: {tokens})")
    return fitting or fallback
