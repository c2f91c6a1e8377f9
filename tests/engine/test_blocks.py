"""Prompts whose queries come in several blocks: scores and choices are those of one block, for every method.

A block has a million logits, so the short prompts of other tests are one block.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench.methods import context, output_norms
from kvbench.prompts import Prompt
from tests.helpers.tiny_engine import METHODS, generate, prompt, tiny_model, variants

TOKENS, ASKED = 203, 37


@pytest.mark.parametrize("kernel", ["torch", pytest.param("cpu", marks=pytest.mark.gxx)])
def test_blocks_of_queries_change_nothing(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cpu kernel knows the log-sum-exp of every query, of which a block takes its own."""
    real, scores = context.LayerContext._checked_score, dict[tuple[str, int], Tensor]()

    def checked(self: context.LayerContext, part: Any) -> Tensor:
        score_UT = real(self, part)
        scores[repr(part), self.layer] = score_UT.clone()
        return score_UT

    monkeypatch.setattr(context.LayerContext, "_checked_score", checked)
    chosen, ids = variants(METHODS, [70]), prompt(TOKENS)
    asked = Prompt(ids=tuple(ids), context_len=TOKENS - ASKED, stop_ids=frozenset(), text="")
    (whole,) = generate(tiny_model(), [asked], chosen, max_new_tokens=2, kernel=kernel)
    one_block = scores.copy()
    scores.clear()
    monkeypatch.setattr(context, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(context, "COLUMN_SUM_QUERIES", 7)
    monkeypatch.setattr(output_norms, "_BLOCK", 50)
    (blocks,) = generate(tiny_model(), [asked], chosen, max_new_tokens=2, kernel=kernel)
    assert scores.keys() == one_block.keys() and len(scores) > 4 * 10
    for key, score_UT in scores.items():
        torch.testing.assert_close(
            score_UT, one_block[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
    for variant, several, single in zip(chosen, blocks, whole, strict=True):
        assert (several.kept, several.token_ids) == (single.kept, single.token_ids), variant
