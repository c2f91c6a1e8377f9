"""CriticalKV: the printed norms and tokens, and a naive twin of its two stages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.methods.context import LayerContext
from kvbench.methods.output_norms import output_norms
from kvbench.methods.prompt_facts import PromptFacts
from tests.helpers.methods import DrawnView
from tests.reference import critical, select, tva
from tests.reference.cases import draw

NORMS = tva._numbers(
    "9.473110 12.918346 15.274349 16.265940 15.804543 13.931374 10.835911 7.089156 3.106562 3.723220 7.673107"
    " 11.388476 14.322201 15.976567 16.203793 14.983583"
)


class PrintedView(DrawnView):
    """The output projection of the printed example."""

    def o_proj(self, layer: int) -> Tensor:
        """Return [4, 4, 8]."""
        values = [math.cos(0.3 * (h + 1) + 0.5 * c + 0.7 * o) for h in range(4) for c in range(4) for o in range(8)]
        return torch.tensor(values, dtype=torch.float64).view(4, 4, 8)


def keep(**dials: object) -> list[list[int]]:
    q, k, v = map(torch.tensor, tva.tensors())
    method = kvbench.load_method("critical", window=3, kernel_size=3, pooling="avg", **dials)
    return [head.tolist() for head in method.keep(q, k, v, budget=7, model=PrintedView(4, 4))]


def test_the_printed_norms_and_tokens() -> None:
    q, k, v = map(torch.tensor, tva.tensors())
    ctx = LayerContext(q, k, v, facts=PromptFacts(model=PrintedView(4, 4)))
    np.testing.assert_allclose(output_norms(ctx)[0], NORMS, atol=0.6e-6)
    twin = critical.output_norms(v.numpy(), PrintedView(4, 4).o_proj(0).numpy())
    np.testing.assert_allclose(twin[0], NORMS, atol=0.6e-6)
    assert keep() == [[0, 1, 2, 3, 13, 14, 15], [0, 1, 2, 8, 13, 14, 15]]
    assert keep(share_of="kept") == [[1, 2, 3, 4, 13, 14, 15], [0, 1, 2, 8, 13, 14, 15]]
    assert keep(first=1.0) == [[0, 1, 2, 8, 13, 14, 15], [0, 1, 2, 8, 13, 14, 15]], "all by attention: SnapKV"


@pytest.mark.parametrize("share_of", ["selected", "kept"])
@pytest.mark.parametrize("seed", range(20))
def test_kept_tokens_are_those_of_the_naive_twin(seed: int, share_of: str) -> None:
    case = draw(9300 + seed)
    first, epsilon = [0.5, 0.29, 0.0, 0.9][seed % 4], [1e-4, 0.1][seed % 2]
    dials = {name: value for name, value in case.dials.items() if name != "reduce"}
    case.dials["reduce"] = "mean"
    method = kvbench.load_method(
        "critical", window=case.window, first=first, epsilon=epsilon, share_of=share_of, **dials
    )
    q, _, v = case.layers[0]
    norms = critical.output_norms(v, DrawnView(len(q), q.shape[2]).o_proj(0).numpy())
    kept, past = case.keep(method)[0], case.tokens - case.window
    always = case.window if share_of == "kept" else 0
    for head, row in enumerate(case.window_scores(0)):
        count = max(0, int((case.base + always) * first) - always)
        stage, second = critical.stages(row[:past], norms[head, :past], case.base, count, epsilon)
        got = kept[head].tolist()
        assert got[-case.window :] == list(range(past, case.tokens))
        tied = {j for j in range(past) if stage and abs(row[j] - row[stage[-1]]) <= 1e-9 * abs(row[stage[-1]])}
        if len(tied) > 1 and case.dials["pooling"] == "avg":
            continue  # sums in another order decide which of the tied tokens the first stage takes
        assert select.explain_mismatch(got[: -case.window], second, case.base, 1e-9) is None


def test_the_method_says_what_it_reads() -> None:
    x = torch.randn(2, 60, 8)
    with pytest.raises(ValueError, match=r"^method=critical: reads model; give keep\(model=...\)$"):
        kvbench.load_method("critical").keep(x, x, x, budget=40)
