"""PrefixKV's tables of drop ratios: how they are computed, read and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench import config
from kvbench.methods.decode.profile_place import DropByProfile
from kvbench.methods.files import DialFile, read_file
from kvbench.methods.layer_profile import drop_ratios, read_profile
from kvbench.methods.layers.profile import ProfileLayers
from tests.helpers.methods import ratio_table
from tests.reference import allocate

TABLE = {"0.2": [0.1, 0.3], "0.5": [0.25, 0.75]}


def dial_file(content: Any) -> DialFile:
    return DialFile(json.dumps(content), "profile.json")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_the_ratios_of_a_prompt_are_those_of_the_naive_search(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    layers, tokens, start = int(rng.integers(2, 6)), 10 * int(rng.integers(3, 12)), int(rng.integers(0, 4))
    mass = rng.random((layers, tokens)) ** rng.integers(1, 6, size=(layers, 1))
    forget = allocate.prefix_reference(list(mass), round((1 - share) * tokens), start)
    ratios = drop_ratios(torch.tensor(mass), share, start + 1)
    assert [round(ratio * tokens) for ratio in ratios] == pytest.approx(forget, abs=1), "int() of a float quotient"
    assert sum(ratios) / layers <= share + 1e-9


def test_budgets_of_the_table_and_between_its_rows() -> None:
    """At 0.5 the table's own row; at 0.35 the mean of two; beyond the last row toward dropping everything."""
    layers = ProfileLayers(dial_file(TABLE))
    assert layers.ratios(50, 100) == [0.25, 0.75] and layers.ratios(80, 100) == [0.1, 0.3]
    assert layers.ratios(65, 100) == pytest.approx([0.175, 0.525])
    assert layers.ratios(25, 100) == pytest.approx([0.625, 0.875])
    assert layers.ratios(51, 103) == [0.25, 0.75], "half of 103 tokens, rounded down as a budget is"


@pytest.mark.parametrize(
    ("ratios", "allocation", "kept"),
    [
        ([0.25, 0.75], "reference", [8, 2]),  # 2.5 and 7.5 dropped tokens: halves go to the even number
        ([0.25, 0.75], "exact", [7, 3]),  # the missing one goes to the first layer
        ([0.35, 0.85], "reference", [6, 2]),
        ([0.3, 0.6], "reference", [7, 4]),  # misses the budget, as the profile does
        ([0.3, 0.6], "exact", [7, 3]),
        ([0.0, 1.0], "reference", [10, 2]),  # the first token and the last stay
        ([0.0, 1.0], "exact", [8, 2]),  # what the second layer cannot drop, the first does
    ],
)
def test_layer_budgets_by_a_table(tmp_path: Path, ratios: list[float], allocation: str, kept: list[int]) -> None:
    q = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    method = kvbench.load_method("prefixkv_offline", profile=_file(tmp_path, {"0.5": ratios}), allocation=allocation)
    assert [len(heads[0]) for heads in method.keep_layers([(q, q, q)] * 2, budget=0.5)] == kept


def test_a_layer_keeps_the_ratio_of_the_profile_while_generating() -> None:
    """The reference: 0.246 of 10 tokens round to 2, but of 50 tokens 38 stay and not 40."""
    numbers = {name: torch.tensor([[n]]) for name, n in (("base", 8), ("steps", 40), ("span", 10))}
    for allocation, held in (("exact", 40), ("reference", 38)):
        policy = DropByProfile(dial_file({"0.5": [0.246, 0.754]}), allocation=allocation)
        assert int(policy.limit(numbers["base"], numbers["steps"], 0, numbers["span"])) == held
    other = torch.tensor([[5]])  # no row of the profile leaves 5 tokens
    assert int(policy.limit(other, numbers["steps"], 0, numbers["span"])) == 25


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "not an object of ratios"),
        ({}, "not an object of ratios"),
        ({"half": [0.5]}, "'half' must be the share that leaves, in [0, 1)"),
        ({"1.0": [0.5]}, "'1.0' must be the share that leaves, in [0, 1)"),
        ({"nan": [0.5]}, "'nan' must be the share that leaves, in [0, 1)"),
        ({"0.5": []}, "'0.5' must be a list of ratios in [0, 1], one for each layer"),
        ({"0.5": [1.5]}, "'0.5' must be a list of ratios in [0, 1], one for each layer"),
        ({"0.5": [True]}, "'0.5' must be a list of ratios in [0, 1], one for each layer"),
        ({"0.1": [0.1], "0.5": [0.4, 0.6]}, "lists of 1 and of 2 layers"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        kvbench.load_method("prefixkv_offline", profile=(path := _file(tmp_path, content)))
    assert str(caught.value) == f"method.profile={path}: is no table of drop ratios ({reason})"


def test_a_table_of_another_model_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    method = kvbench.load_method("prefixkv_offline", profile=ratio_table(5))
    with pytest.raises(ValueError, match=r"method\.profile=.*: has ratios for 5 layers, but the model has 4$"):
        method.check_model(layers=4, heads=2, query_heads=4)
    with pytest.raises(ValueError, match=r"no such file.*; `python -m kvbench layers model=NAME` writes one$"):
        kvbench.load_method("prefixkv_offline", profile=str(tmp_path / "missing.json"))


def test_the_shipped_table_is_one_of_smollm2() -> None:
    """The model's hint names it; `read_file` compares its checksum."""
    name = config.defaults("model", "smollm2_135m").hints.layer_profile
    table = read_profile(read_file("profile", name).text)
    assert [share for share, _ in table] == [tenth / 10 for tenth in range(11)]
    for share, ratios in table:
        assert len(ratios) == 30 and sum(ratios) / 30 == pytest.approx(share, abs=0.001)
    method = kvbench.load_method("prefixkv_offline", profile=name)
    method.check_model(layers=30, heads=3, query_heads=9)


def _file(folder: Path, content: Any) -> str:
    """Return the path of a new file with this content."""
    path = folder / "profile.json"
    path.write_text(json.dumps(content))
    return str(path)
