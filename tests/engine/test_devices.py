"""Layers on several devices, as model.device_map=auto places them. The device "meta" stands for the second one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import kvbench
from kvbench.cache.base import NewTokens
from kvbench.cache.forms import Form
from kvbench.cache.ragged import RaggedCache
from kvbench.engine.caches import ContinuePass
from kvbench.engine.survey import survey
from tests.helpers.tiny_engine import tiny_model

FIRST, SECOND = torch.device("cpu"), torch.device("meta")


def test_layers_share_their_groups_of_rows_on_one_device_alone() -> None:
    cache, store = RaggedCache(4), kvbench.load_method("kivi").store
    cache._form_of = [{0: Form(store, False), 1: None} for _ in range(4)]
    groups = [cache._by_form(layer, (0, 1), device) for layer, device in enumerate((FIRST, FIRST, SECOND, SECOND))]
    assert [{group.at.device for group in of_layer} for of_layer in groups] == [{FIRST}] * 2 + [{SECOND}] * 2
    assert groups[0] is groups[1] and groups[2] is groups[3]


def test_the_ids_of_new_tokens_lie_where_the_layer_does() -> None:
    """They come from the device of the embeddings; each device gets them once."""
    given: list[NewTokens] = []

    def attend(layer: int, rows: Any, q: Any, k: Any, v: Any, scaling: float, new: NewTokens) -> Any:
        given.append(new)
        return q

    caches: Any = SimpleNamespace(plan=survey(tiny_model()[0]), attend=attend)
    steps = ContinuePass(caches, [0], [[7]])
    ids_11 = torch.tensor([[7]])
    steps.begin(ids_11)
    for layer, device in enumerate((FIRST, FIRST, SECOND, SECOND)):
        x = torch.zeros(1, 1, 1, 1, device=device)
        steps.attend(layer, x, x, x, 1.0)
    assert [new.ids_BT.device for new in given] == [FIRST, FIRST, SECOND, SECOND]
    assert given[1].ids_BT is ids_11 and given[2] is given[3] and all(new.ids == [[7]] for new in given)
