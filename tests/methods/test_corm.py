"""CORM after the prefill: the printed tokens, a naive twin, and prompts too short to tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.decode.long_minor import DropLongMinor
from tests.reference import corm, scores, tva
from tests.reference.cases import draw

Q_HTD, K_UTD, V_UTD = tva.tensors()
PRINTED = [
    [0, 1, 4, 7, 9, 12, 13, 14, 15],
    [1, 4, 7, 9, 11, 13, 14, 15],
    [0, 1, 4, 7, 9, 11, 12, 13, 14, 15],
    [1, 2, 4, 5, 7, 9, 11, 13, 14, 15],
]


def test_the_printed_tokens() -> None:
    k_HTD, v_HTD = (np.repeat(x, 2, axis=0) for x in (K_UTD, V_UTD))
    method = kvbench.load_method("corm", history=3, recent=3)
    assert corm.keep(Q_HTD, k_HTD, 3, 3) == PRINTED
    assert [h.tolist() for h in method.keep(*map(torch.tensor, (Q_HTD, k_HTD, v_HTD)))] == PRINTED
    grouped = [sorted({*PRINTED[0], *PRINTED[1]}), sorted({*PRINTED[2], *PRINTED[3]})]
    assert [h.tolist() for h in method.keep(*map(torch.tensor, (Q_HTD, K_UTD, V_UTD)))] == grouped


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(20))
def test_kept_tokens_are_those_of_the_naive_twin(seed: int, dtype: str) -> None:
    """Attention of exactly the average share is decided by rounding; such tokens may go either way."""
    case = draw(9100 + seed, dtype=dtype)
    history, recent = seed % 9 + 1, seed % 5 + 1
    kept = case.keep(kvbench.load_method("corm", history=history, recent=recent))[0]
    q, k, _ = case.layers[0]
    wanted = corm.keep(q, k, history, recent, case.scaling)
    for head, (got, twin) in enumerate(zip(kept, wanted, strict=True)):
        for token in {*got.tolist()} ^ {*twin}:
            group, first = len(q) // len(k), case.tokens - history
            rows = [scores.attention_rows(q, k, head * group + i, first, case.scaling)[:, token] for i in range(group)]
            at = np.arange(first, case.tokens) + 1
            assert np.abs(np.stack(rows) * at - 1).min() < 1e-4, token


@pytest.mark.parametrize("seed", range(6))
def test_the_policy_starts_from_the_last_important_query(seed: int) -> None:
    """The state begins at 0, so that 0 also means none; position 0 leaves the history with the first token."""
    case = draw(9200 + seed)
    q, k, v = case.torch_layer(0)
    last_UT = DropLongMinor(5).score(LayerContext(q, k, v, scaling=case.scaling))
    twin = corm.last_important(*case.layers[0][:2], 5, case.scaling)
    assert last_UT.tolist() == [[max(0, last) for last in row] for row in twin]


@pytest.mark.parametrize(("history", "recent"), [(40, 8), (100, 8), (8, 40), (8, 100), (256, 256)])
def test_a_short_prompt_is_kept(history: int, recent: int) -> None:
    """It has at most as many tokens as queries are asked, or as always stay; that breaks no promise."""
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    method = kvbench.load_method("corm", history=history, recent=recent)
    assert method.promises is None
    assert [head.tolist() for head in method.keep(x, x, x)] == [list(range(40))] * 2


@pytest.mark.parametrize("seed", range(6))
def test_tokens_of_a_short_prompt_leave_once_enough_queries_were_there(seed: int) -> None:
    """The queries of a short prompt count among the last `history` ones, as those of a long prompt do."""
    case = draw(9300 + seed)
    q, k, v = case.torch_layer(0)
    last_UT = DropLongMinor(case.tokens + 5).score(LayerContext(q, k, v, scaling=case.scaling))
    twin = corm.last_important(*case.layers[0][:2], case.tokens, case.scaling)
    assert last_UT.tolist() == [[max(0, last) for last in row] for row in twin]


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"history": 0}, "method.history=0: must be at least 1"),
        ({"recent": -1}, "method.recent=-1: must be at least 0"),
        ({"phase": "prefill", "interval": 3}, "method.interval=3: has no effect with method.phase=prefill"),
    ],
)
def test_a_mistake_names_the_dial(dials: dict[str, Any], message: str) -> None:
    """The dials feed a policy within the selection as well."""
    with pytest.raises(ValueError) as caught:
        kvbench.load_method("corm", **dials)
    assert str(caught.value) == message
