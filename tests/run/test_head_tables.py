"""The tables of head scores in conf/heads: whole, of the shape of their model, and the default of headkv for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import kvbench
from kvbench.benchmarks.head_probes import HeadProbe
from kvbench.common.paths import conf_dir
from kvbench.config import check
from kvbench.config.groups import options, shipped
from kvbench.methods.base import LayerBudget
from kvbench.methods.files import read_file
from kvbench.methods.head_scores import read_head_scores
from kvbench.methods.heads.table import TableLayers

TABLES = sorted(path for path in (conf_dir() / "heads").glob("*.json") if not path.name.endswith(".about.json"))


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_table_has_its_checksum_and_the_shape_of_its_model(table: Path) -> None:
    about = json.loads(table.with_suffix(".about.json").read_text(encoding="utf-8"))
    file = read_file("table", str(table))
    assert file.digest == f"sha256:{about['sha256']}"
    assert table.stem == f"{about['model']['name']}_{about['probe']['probe']}"
    assert {len(scores) for scores in json.loads(file.text).values()} == {len(about["counted"])}
    assert len(about["counted"]) >= 10 and about["prompts"] >= 50 and table.stat().st_size < 100_000
    shape = OmegaConf.load(conf_dir() / "model" / "shape" / f"{about['model']['name']}.yaml")
    layers, query_heads, heads = shape.layers, shape.heads, shape.kv_heads
    part = TableLayers(file)
    part.check_model(layers=layers, heads=heads, query_heads=query_heads)
    budget = LayerBudget(128, 1000, layers=layers, heads=heads, query_heads=query_heads, window=8)
    assert sum(part(budget)) == 128 * layers * heads and len(set(part(budget))) > layers // 4
    protocol = {key: value for key, value in about["probe"].items() if key not in ("haystack", "version")}
    assert HeadProbe(**protocol).protocol() == about["probe"], "computed by another version of the probe"


def test_both_probes_find_some_of_the_same_heads() -> None:
    """Chance would give 10 * 10 / 270 common heads."""
    best = []
    for table in TABLES:
        scores, _ = read_head_scores(table.read_text(encoding="utf-8"))
        best.append(set(sorted(range(len(scores)), key=lambda head, scores=scores: -scores[head])[:10]))
    assert len(best) == 2 and len(best[0] & best[1]) >= 4


def test_every_hint_of_a_model_is_a_table_for_it() -> None:
    hints = {name: shipped("model", name).get("hints") or {} for name in options("model")}
    tables = {name: hint["head_table"] for name, hint in hints.items() if "head_table" in hint}
    assert "smollm2_135m" in tables
    for name, table in tables.items():
        about = json.loads((conf_dir() / table).with_suffix(".about.json").read_text(encoding="utf-8"))
        assert about["model"]["name"] == name
        assert kvbench.load_method("headkv", table=table).dials["table"].path == table


def test_a_model_without_a_table_is_one_line_that_names_the_command(compose: Callable[..., DictConfig]) -> None:
    check(compose("model=smollm2_135m", "method=headkv"))
    with pytest.raises(ValueError) as caught:
        check(compose("model=tiny", "method=headkv"))
    command = "`python -m kvbench heads model=tiny` writes one"
    assert str(caught.value) == f"method.table=: must be the path of a file; {command}"
