"""HeadKV: the printed capacities, a naive twin, the published tables, and tables that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.methods.base import LayerBudget
from kvbench.methods.files import read_file
from kvbench.methods.head_scores import read_head_scores
from kvbench.methods.heads.table import TableLayers
from tests.helpers.methods import head_table
from tests.helpers.outside import DATA, golden
from tests.reference import headkv, select
from tests.reference.cases import draw

PRINTED = {  # eight heads in all, budget 128, window 8
    1.01: [474, 238, 144, 96, 2, 2, 2, 2],
    1.1: [447, 229, 142, 98, 11, 11, 11, 11],
    1.5: [360, 200, 136, 104, 40, 40, 40, 40],
    2: [300, 180, 132, 108, 60, 60, 60, 60],
    10: [156, 132, 122, 118, 108, 108, 108, 108],
}


def flat(capacities: list[list[int]]) -> list[int]:
    return [count for layer in capacities for count in layer]


def write(folder: Path, content: Any) -> str:
    file = folder / "table.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


@pytest.mark.parametrize("allocation", ["reference", "exact"])
@pytest.mark.parametrize("beta", PRINTED)
def test_the_printed_capacities(tmp_path: Path, beta: float, allocation: str) -> None:
    scores = [0.5, 0.25, 0.15, 0.1, 0, 0, 0, 0]
    table = write(tmp_path, {f"{i // 4}-{i % 4}": [score, score] for i, score in enumerate(scores)})
    budget = LayerBudget(128, 5000, layers=2, heads=4, query_heads=4, window=8)
    got = flat(TableLayers(read_file("table", table), beta, allocation).capacities(budget))
    assert headkv.query_head_capacities(scores, 120, beta) == PRINTED[beta]
    if allocation == "reference":
        assert got == PRINTED[beta]
    else:
        assert sum(got) == 120 * 8 and max(abs(a - b) for a, b in zip(got, PRINTED[beta], strict=True)) <= 1


@pytest.mark.parametrize("allocation", ["reference", "exact"])
@pytest.mark.parametrize("seed", range(24))
def test_kept_tokens_are_those_of_the_naive_twin(seed: int, allocation: str) -> None:
    case = draw(9000 + seed, num_layers=seed % 5 + 1)
    query_heads, beta, temp = len(case.layers[0][0]), [1, 1.01, 1.5, 5][seed % 4], [1.0, 0.5, 2.5, 0.0][seed // 4 % 4]
    table = head_table(len(case.layers), query_heads, seed)
    dials = {name: value for name, value in case.dials.items() if name in ("kernel_size", "pooling")}
    dials["allocation"] = allocation
    method = kvbench.load_method("headkv", table=table, beta=beta, temp=temp, window=case.window, **dials)
    kept = case.keep(method)
    twin = headkv.exact if allocation == "exact" else headkv.reference
    candidates, group = case.tokens - case.window, query_heads // case.heads
    caps = twin(list(read_head_scores(Path(table).read_text())[0]), group, case.base, beta, candidates, temp)
    case.dials["reduce"] = "mean"
    for layer, heads in enumerate(kept):
        for head, (row, got) in enumerate(zip(case.window_scores(layer), heads, strict=True)):
            chosen, cap = got.tolist(), caps[layer * case.heads + head]
            assert chosen[len(chosen) - case.window :] == list(range(candidates, case.tokens))
            problem = select.explain_mismatch(chosen[: len(chosen) - case.window], row, cap, select.RTOL[case.dtype])
            assert problem is None, problem


def test_the_budget_of_kvcache_factory_is_ours_with_the_window_added(tmp_path: Path) -> None:
    """KVCache-Factory shares out C tokens and keeps the window next to them; C = 128, beta 1.01, window 8."""
    table = write(tmp_path, {f"{i // 4}-{i % 4}": s for i, s in enumerate([0.5, 0.25, 0.15, 0.1, 0, 0, 0, 0])})
    budget = LayerBudget(128 + 8, 5000, layers=2, heads=4, query_heads=4, window=8)
    assert flat(TableLayers(read_file("table", table), 1.01, "reference").capacities(budget))[:5] == [
        506,
        254,
        153,
        103,
        2,
    ]


@pytest.mark.parametrize("temp", [-1.0, 51.0])
def test_a_temperature_that_would_round_away_all_shares_is_one_line(temp: float) -> None:
    with pytest.raises(ValueError, match=rf"^method\.temp={temp}: must be at (least 0|most 50)$"):
        kvbench.load_method("headkv", table=head_table(4, 4), temp=temp)


def test_a_temperature_of_zero_makes_all_heads_equal() -> None:
    table = read_file("table", head_table(2, 4))
    budget = LayerBudget(128, 5000, layers=2, heads=4, query_heads=4, window=8)
    assert flat(TableLayers(table, 1.01, temp=0.0).capacities(budget)) == [120] * 8


def test_a_head_takes_no_more_than_the_prompt_has(tmp_path: Path) -> None:
    """The reference loses what it clips; exact gives it to the other heads."""
    table = write(tmp_path, {"0-0": 1.0, "0-1": 0.0, "1-0": 0.0, "1-1": 0.0})
    budget = LayerBudget(30, 50, layers=2, heads=2, query_heads=2, window=2)
    reference = flat(TableLayers(read_file("table", table), 1.01, "reference").capacities(budget))
    exact = flat(TableLayers(read_file("table", table), 1.01, "exact").capacities(budget))
    assert reference == [48, 1, 1, 1] and sum(exact) == 28 * 4 and max(exact) == 48


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "not an object of scores"),
        ({}, "not an object of scores"),
        ({"0-0": [1], "0-1": []}, "'0-1' must be a layer and a head"),
        ({"0-0": [1], "1-1": [1]}, "2 heads, but 2 layers of 2 heads are 4"),
        ({"0_0": [1]}, "'0_0' must be a layer and a head"),
        ({"0-0": ["a"]}, "'0-0' must be a layer and a head"),
        ({"0-0": [True]}, "'0-0' must be a layer and a head"),
        ({"0-0": [-1]}, "'0-0' must be a layer and a head"),
        ('{"0-0": [NaN]}', "'0-0' must be a layer and a head"),
        ({"0-0": 0, "0-1": 0}, "the scores must have a positive sum"),
    ],
    ids=str,
)
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    table = write(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        kvbench.load_method("headkv", table=table)
    text = str(caught.value)
    assert text.startswith(f"method.table={table}: is no table of head scores ({reason}") and "\n" not in text


@pytest.mark.parametrize("table", [None, "", "nowhere.json", "/", 3, True])
def test_a_missing_table_names_the_dial_and_the_command(table: object) -> None:
    with pytest.raises(
        ValueError, match=r"^method\.table=.*: (must be the path of a file|no such file|is no file)"
    ) as caught:
        kvbench.load_method("headkv", table=table)
    assert "\n" not in str(caught.value)
    wants_command = "must be the path" in str(caught.value) or "no such file" in str(caught.value)
    assert wants_command == ("python -m kvbench heads model=NAME" in str(caught.value))


def test_a_file_with_another_checksum_than_its_description_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path, {"0-0": 1, "0-1": 3})
    digest = read_file("table", table).digest.removeprefix("sha256:")
    about = tmp_path / "table.about.json"
    about.write_text(json.dumps({"sha256": digest}))
    assert read_file("table", table).path == table
    write(tmp_path, {"0-0": 1, "0-1": 2})
    with pytest.raises(ValueError, match=r"^method\.table=.*table.json: is not the file that .*about.json describes"):
        read_file("table", table)
    about.write_text("{")
    with pytest.raises(ValueError, match=r"^method\.table=.*table.json: .*about.json cannot be read"):
        read_file("table", table)


def test_a_table_of_another_model_names_both_shapes() -> None:
    """Equal numbers of heads in all, and of KV heads, are not enough."""
    method = kvbench.load_method("headkv", table=head_table(4, 6))
    q, k = torch.randn(4, 60, 8), torch.randn(2, 60, 8)
    expected = r"has scores for 4 layers of 6 query heads, but the model has 6 layers of 4"
    with pytest.raises(ValueError, match=expected):
        method.keep(q, k, k, budget=30, num_layers=6)
    with pytest.raises(ValueError, match=rf"^method\.table=.*json: {expected}$"):
        method.check_model(layers=6, heads=2, query_heads=4)


def test_a_loaded_method_keeps_its_table(tmp_path: Path) -> None:
    """Its content is part of the identity of the run, so that it may not change meanwhile."""
    table = write(tmp_path, {"0-0": 1, "0-1": 3})
    dials: dict[str, Any] = {"table": table, "window": 2, "beta": 1}
    method = kvbench.load_method("headkv", **dials)
    write(tmp_path, {"0-0": 3.0, "0-1": 1.0})
    x = torch.randn(2, 60, 8)
    assert [len(head) for head in method.keep(x, x, x, budget=22)] == [12, 32]
    changed = kvbench.load_method("headkv", **dials)
    assert changed != method and [len(head) for head in changed.keep(x, x, x, budget=22)] == [32, 12]


@golden("heads_score")
def test_the_published_tables() -> None:
    files = sorted((DATA / "heads_score").glob("*.json"))
    assert len(files) == 4
    for file in files:
        scores, heads = read_head_scores(file.read_text())
        assert (len(scores), heads) == (1024, 32)
        published = [np.mean(value) for value in json.loads(file.read_text()).values()]
        np.testing.assert_allclose(scores, published, rtol=1e-12)
        budget = LayerBudget(128, 7500, layers=32, heads=8, query_heads=32, window=8)
        twin = headkv.reference(list(scores), 4, 120, 1.01, 7492)
        assert flat(TableLayers(read_file("table", str(file)), 1.01, "reference").capacities(budget)) == twin
        assert sum(map(sum, TableLayers(read_file("table", str(file))).capacities(budget))) == 120 * 32 * 8
