"""Dials that name a file: read before weights load, compared by content, and mistakes name the dial."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.methods.base import Score
from kvbench.methods.context import LayerContext
from kvbench.methods.dials import split_dials
from kvbench.methods.fields import InvalidField
from kvbench.methods.files import DialFile
from kvbench.methods.load import build, load, method_identity
from kvbench.methods.method import Method
from kvbench.methods.read import read_method

HERE = "tests.methods.test_file_dials"


@dataclass(frozen=True)
class Weighted(Score):
    """Positions weighted by a number per layer and KV head, from a table in JSON."""

    table: DialFile

    def __post_init__(self) -> None:
        if not self.table.text.startswith("["):
            raise InvalidField("table", self.table, "must be a list of lists")

    def __call__(self, ctx: LayerContext) -> Tensor:
        weights = torch.tensor(json.loads(self.table.text)[ctx.layer])
        return weights[:, None] * torch.arange(ctx.num_tokens, dtype=torch.float32)

    def check_model(self, *, layers: int, heads: int, query_heads: int) -> None:
        shape = len(rows := json.loads(self.table.text)), len(rows[0])
        if shape != (layers, heads):
            raise InvalidField("table", self.table, f"is {shape}, the model has {layers} layers of {heads} KV heads")


YAML = f"""name: own
use: h2o
table: "file:%s"
score:
  _target_: {HERE}.Weighted
  table: ${{..table}}
"""
H2O = (Path(__file__).parents[2] / "conf" / "method" / "h2o.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of methods, next to which the working directory is."""
    methods = tmp_path / "conf" / "method"
    methods.mkdir(parents=True)
    (methods / "h2o.yaml").write_text(H2O)
    (methods / "own.yaml").write_text(YAML % "")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("kvbench.methods.files.conf_dir", lambda: tmp_path / "conf")
    return methods


def table(path: Path, layers: int = 4, heads: int = 2, weight: float = 1.0) -> Path:
    path.write_text(json.dumps([[weight] * heads] * layers))
    return path


def identity(folder: Path, method: Method, **dials: Any) -> dict[str, Any]:
    config = read_method(folder, "own")
    config.table = str(dials["table"])
    return method_identity(config, method)


def message(folder: Path, **dials: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder, "own", **dials)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_content_is_the_identity_and_not_the_name(folder: Path) -> None:
    first, second = table(Path("a.json")), table(Path("b.json"))
    methods = [load(folder, "own", table=str(path)) for path in (first, second)]
    assert methods[0] == methods[1] and methods[0].eviction == methods[1].eviction
    same = [identity(folder, method, table=path) for method, path in zip(methods, (first, second), strict=True)]
    assert same[0] == same[1]
    assert same[0]["table"] == same[0]["score"]["table"] and same[0]["table"].startswith("sha256:")
    table(first, weight=2.0)
    changed = load(folder, "own", table=str(first))
    assert changed != methods[0] and identity(folder, changed, table=first) != same[0]


def test_a_path_counts_from_the_working_directory_and_then_from_the_configuration(folder: Path) -> None:
    table(folder.parent / "heads.json", weight=3.0)
    assert "3.0" in load(folder, "own", table="heads.json").dials["table"].text
    table(Path("heads.json"), weight=4.0)
    assert "4.0" in load(folder, "own", table="heads.json").dials["table"].text
    assert "3.0" in load(folder, "own", table=folder.parent / "heads.json").dials["table"].text
    assert "4.0" in load(folder, "own", table="file:heads.json").dials["table"].text
    (folder / "own.yaml").write_text(YAML % "heads.json")
    assert "4.0" in load(folder, "own").dials["table"].text


def test_a_file_is_a_dial_on_the_command_line_as_well(folder: Path) -> None:
    """Interpolations around the method stay: a composed method refers to the hints of its model."""
    table(Path("heads.json"))
    from omegaconf import OmegaConf

    node = read_method(folder, "own")
    node.window = "${oc.select:model.hints.window,9}"
    root = OmegaConf.create({"model": {"hints": {"window": 11}}, "method": node})
    OmegaConf.set_struct(root, True)
    root.method.table = "heads.json"
    method = build(root.method, split_dials(read_method(folder, "own")))
    assert method.dials["window"] == 11 and isinstance(method.dials["table"], DialFile)
    assert method_identity(root.method, method)["select"]["window"] == 11
    assert root.method.table == "heads.json", "the configuration itself stays as it is"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("nowhere.json", "method.table=nowhere.json: no such file, neither in "),
        ("/no/where.json", "method.table=/no/where.json: no such file"),
        ("", "method.table=: must be the path of a file"),
        ("file:", "method.table=: must be the path of a file"),
        (".", "method.table=.: is no file"),
        ("/dev/zero", "method.table=/dev/zero: is no file"),
        ("odd.json/x", "method.table=odd.json/x: no such file, neither in "),
        ("broken.json", "method.table=broken.json: is no text in UTF-8"),
        ("x" * 300, "File name too long"),
        ("odd.json", "method.table=odd.json: must be a list of lists"),
        ("a\0b", "method.table="),
        (3, "method.table=3: must be the path of a file"),
        (None, "method.table=null: must be the path of a file"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_dial(folder: Path, value: Any, expected: str) -> None:
    Path("broken.json").write_bytes(b"\xff\xfe\x00")
    Path("odd.json").write_text("{}")
    assert expected in message(folder, table=value)


def test_a_dial_without_a_default_must_be_given(folder: Path) -> None:
    assert message(folder) == "method.table=: must be the path of a file"


@pytest.mark.parametrize("layers, heads", [(3, 2), (4, 4)])
def test_a_table_of_another_shape_is_refused_before_anything_is_computed(folder: Path, layers: int, heads: int) -> None:
    table(Path("a.json"), layers, heads)
    method = load(folder, "own", table="a.json")
    loaded = kvbench.load_model("tiny")
    expected = f"method.table=a.json: is \\({layers}, {heads}\\), the model has 4 layers of 2 KV heads"
    with pytest.raises(ValueError, match=expected):
        kvbench.generate(loaded.model, loaded.tokenizer, [list(range(5, 60))], [(method, 40)])
    with pytest.raises(ValueError, match=expected), kvbench.compressed(loaded.model, method, 40):
        pass
    fitting = load(folder, "own", table=str(table(Path("b.json"))))
    kvbench.generate(loaded.model, loaded.tokenizer, [list(range(5, 60))], [(fitting, 40)], max_new_tokens=2)
