"""`use: snapkv` in a method's YAML, and `ada_snapkv+kivi`: what is inherited, what is replaced, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import kvbench
from kvbench import config
from kvbench.methods.base import Score
from kvbench.methods.composition import Composition
from kvbench.methods.dials import split_dials
from kvbench.methods.layers.uniform import Uniform
from kvbench.methods.load import build, load
from kvbench.methods.read import compose, read_method

BASE = """# A base (arXiv 1111.11111).
name: base
window: 4               # the last tokens
width: 3
score:
  _target_: kvbench.methods.scores.window_attention.WindowAttention
  window: ${..window}
  kernel_size: ${..width}
layers:
  _target_: kvbench.methods.layers.uniform.Uniform
heads:
  _target_: kvbench.methods.heads.uniform.Uniform
select:
  _target_: kvbench.methods.select.top_k.TopK
  window: ${..window}
"""
SUMS = "score:\n  _target_: kvbench.methods.scores.column_sums.ColumnSums\n"
PYRAMID = "steep: 7\nlayers:\n  _target_: kvbench.methods.layers.pyramid.Pyramid\n  beta: ${..steep}\n"
EVICT = "decode:\n  _target_: kvbench.methods.decode.accumulate.AccumulateAndEvict\n  window: ${..window}\n"
KIVI = "bits: 2\nstore:\n  _target_: kvbench.methods.store.kivi.Kivi\n  bits: ${..bits}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "base", BASE)
    write(tmp_path, "full", "name: full\n")
    write(tmp_path, "pyramid", f"use: base\n{PYRAMID}")
    write(tmp_path, "evict", f"use: base\nwindow: 0.5  # a share\n{EVICT}")
    write(tmp_path, "other_evict", f"use: base\nwindow: 0.25\n{EVICT}")
    write(tmp_path, "kivi", f"name: kivi\n{KIVI}")
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.yaml").write_text(text if "name: " in text else f"name: {name}\n{text}")


def message(folder: Path, name: str) -> str:
    with pytest.raises(ValueError) as caught:
        compose(folder, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_may_use_the_methods_of_conf(folder: Path) -> None:
    """Names that a folder lacks are those of conf/method; a file of the folder comes first."""
    write(folder, "wide", "use: snapkv\nwindow: 40\n")
    assert load(folder, "wide").dials == kvbench.load_method("snapkv", window=40).dials
    assert load(folder, "wide") != load(folder, "snapkv") == kvbench.load_method("snapkv")
    assert load(folder, "wide+think").name == "wide+think"
    assert load(folder, "kivi").dials == {"bits": 2}
    assert set(load(folder, "wide+kivi").dials) == {*kvbench.load_method("snapkv").dials, "bits"}
    write(folder, "snapkv", "use: wide\n")
    assert message(folder, "snapkv") == "method=snapkv: its YAML uses itself: use: snapkv → wide → snapkv"


def test_what_a_file_does_not_write_it_inherits(folder: Path) -> None:
    method = compose(folder, "pyramid")
    assert list(method.node) == ["name", "window", "width", "steep", "score", "layers", "heads", "select"]
    assert method.origin == {"score": "base", "layers": "pyramid", "heads": "base", "select": "base"}
    assert method.notes["window"] == ("4", "the last tokens")


def test_a_dial_that_only_a_replaced_part_read_goes_with_it(folder: Path) -> None:
    write(folder, "sums", f"use: base\n{SUMS}")
    assert set(compose(folder, "sums").dials) == {"window"}


def test_an_own_dial_replaces_the_inherited_one_with_its_comment(folder: Path) -> None:
    method = compose(folder, "evict")
    assert method.dials["window"] == 0.5 and method.notes["window"] == ("0.5", "a share")


def test_a_part_of_null_is_taken_away(folder: Path) -> None:
    write(folder, "without", "use: evict\ndecode: null\n")
    assert "decode" not in compose(folder, "without").node


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"a": "use: a\n"}, "a", "method=a: its YAML uses itself: use: a → a"),
        ({"a": "use: b\n", "b": "use: c\n", "c": "use: b\n"}, "a", "its YAML uses itself: use: a → b → c → b"),
        ({"a": "use: b+kivi\n", "b": "use: a\n"}, "a", "method=a: its YAML uses itself: use: a → b → a"),
        ({"a": "use: bas\n"}, "a", "method=a: use: a → bas: no such method 'bas'. Did you mean 'base'?"),
        ({"a": "use: [base]\n"}, "a", "method=a: use: ['base'] in a.yaml must be the name of a method"),
        ({"a": "use:\n"}, "a", "method=a: use: None in a.yaml must be the name of a method"),
        ({"a": "use: 3\n"}, "a", "method=a: use: 3 in a.yaml must be the name of a method"),
        ({"a": "name: b\n"}, "a", "method.name=b: must be a, the name of a.yaml"),
        ({"a": "score: 3\n"}, "a", "method.score=3: must be a part, with the class as _target_"),
        ({"a": "defaults: [base]\n"}, "a", "method=a: a.yaml cannot have a defaults list; inherit with use: NAME"),
        ({"a": "x: [\n"}, "a", "method=a: a.yaml cannot be read: "),
        ({"a": "x: 1\nx: 2\n"}, "a", "method=a: a.yaml cannot be read: "),
        ({"a": "test: 3\n"}, "a", "method=a: test: in a.yaml must hold dials and a budget"),
        ({"a": "about: 3\n"}, "a", "method=a: about: in a.yaml must hold paper, code, equal"),
        (
            {"a": "about: {cod: x}\n"},
            "a",
            "a.yaml has no entry 'cod', only paper, code, equal, acts. Did you mean 'code'?",
        ),
        ({"a": "about: {code: 3}\n"}, "a", "method=a: about: code: 3 in a.yaml must be text"),
        ({"a": 'about: {equal: " "}\n'}, "a", "method=a: about: equal:   in a.yaml must be text"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(folder: Path, files: dict[str, str], name: str, expected: str) -> None:
    for file, text in files.items():
        write(folder, file, text)
    assert expected in message(folder, name)


@pytest.mark.parametrize("name", ["full+pyramid", "pyramid+full", "full+kivi", "full+base+evict"])
def test_a_method_without_parts_is_refused_where_it_changes_nothing(folder: Path, name: str) -> None:
    assert f"method={name}: full has no parts" in message(folder, name)


def test_all_tokens_of_the_prompt_stay_next_to_a_method_without_parts(folder: Path) -> None:
    """The other method keeps what it does with stored tokens, and the dials that this reads."""
    for name in ("full+evict", "evict+full"):
        method = compose(folder, name)
        assert method.name == "full+evict"
        assert set(method.parts) == {"decode"} and set(method.dials) == {"window"}
    stored = compose(folder, "kivi+full+evict")
    assert stored.name == "full+kivi+evict" and set(stored.parts) == {"decode", "store"}


def test_where_a_method_comes_from_is_its_own_and_no_dial(folder: Path) -> None:
    about = {"paper": "A. Author 2020, arXiv 2000.00000", "code": "a/b 1234567", "equal": "kept tokens"}
    write(folder, "a", f"use: base\n{PYRAMID}about: {about}\n")
    write(folder, "b", "use: a\nsteep: 9\n")
    write(folder, "c", f"name: c\n{KIVI}about: {{code: none published}}\n")
    method, combined = compose(folder, "a"), compose(folder, "a+c")
    assert method.about == {"a": about} and compose(folder, "b").about == {}
    assert combined.about == {"a": about, "c": {"code": "none published"}} and compose(folder, "c+a").about.keys() == {
        "a",
        "c",
    }
    assert "about" not in {**method.node, **method.dials, **method.notes, **combined.node}


def test_a_combination_has_the_parts_of_both(folder: Path) -> None:
    method = compose(folder, "pyramid+kivi")
    assert method.name == "pyramid+kivi"
    assert method.origin == {**compose(folder, "pyramid").origin, "store": "kivi"}
    assert set(method.dials) == {"window", "width", "steep", "bits"}


@pytest.mark.parametrize("names", ["kivi+pyramid", "pyramid+evict+kivi", "evict+kivi+pyramid", "kivi+pyramid+evict"])
def test_the_order_does_not_matter_where_the_parts_are_the_same(folder: Path, names: str) -> None:
    method = compose(folder, names)
    factors = set(names.split("+"))
    assert method.name == ("pyramid+evict+kivi" if "evict" in factors else "pyramid+kivi")
    assert method == compose(folder, method.name)


def test_a_dial_of_both_is_called_by_its_method(folder: Path) -> None:
    method = compose(folder, "pyramid+evict")
    assert method.dials == {"window": 4, "width": 3, "steep": 7, "evict_window": 0.5}
    assert method.parts["decode"]["window"] == "${..evict_window}"
    assert method.parts["select"]["window"] == "${..window}"
    assert method.notes["evict_window"] == ("0.5", "a share")


def test_a_policy_brings_no_prompt_parts_of_its_own(folder: Path) -> None:
    """The methods that write everything into one file are combined like those that inherit."""
    write(folder, "alone", f"name: alone\n{SUMS}{BASE[BASE.index('layers:') :]}{EVICT}window: 0.5\n")
    for name in ("pyramid+alone", "alone+pyramid"):
        method = compose(folder, name)
        assert method.name == "pyramid+alone" and method.dials["alone_window"] == 0.5
        assert method.origin == {**compose(folder, "pyramid").origin, "decode": "alone"}


def test_a_dial_of_the_common_base_is_one_dial(folder: Path) -> None:
    text = "select:\n  _target_: kvbench.methods.select.top_k.TopK\n  window: ${..window}\n  sinks: 2\n"
    write(folder, "chosen", f"use: base\n{text}")
    method = compose(folder, "pyramid+chosen")
    assert set(method.dials) == {"window", "width", "steep"} and method.parts["select"]["sinks"] == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pyramid+", "method=pyramid+: a name is missing next to a +"),
        ("+", "method=+: a name is missing next to a +"),
        ("kivi+kivi", "method=kivi+kivi: kivi is named twice"),
        ("kivi+pyramd", "method=kivi+pyramd: no such method 'pyramd'. Did you mean 'pyramid'?"),
        ("full+kivi", "method=full+kivi: full has no parts; write method=kivi"),
        ("kivi+full", "method=kivi+full: full has no parts; write method=kivi"),
        ("full+full", "named twice"),
        ("base+pyramid", "pyramid would replace layers of base; write method=pyramid"),
        ("pyramid+base", "base would replace layers of pyramid; write method=base"),
        ("evict+other_evict", "method=evict+other_evict: evict and other_evict set decode, and a method has one"),
    ],
)
def test_a_combination_without_meaning_is_one_line_with_the_reason(folder: Path, name: str, expected: str) -> None:
    assert expected in message(folder, name)


@pytest.mark.parametrize("name", ["snapkv+streaming_llm_true", "streaming_llm_true+kivi", "tova+streaming_llm_true"])
def test_nothing_is_combined_with_a_fed_prompt(name: str) -> None:
    with pytest.raises(ValueError, match=r"^method=.*: streaming_llm_true feeds its prompt .* write method="):
        kvbench.load_method(name)


def test_one_dial_with_two_kinds_of_values_names_both_methods(folder: Path) -> None:
    write(folder, "share", BASE.replace("name: base", "name: share").replace("window: 4 ", "window: 0.5 "))
    write(folder, "chosen", "use: base\nselect:\n  _target_: x.Y\n  window: ${..window}\n")
    expected = "the dial window is 0.5 in share and 4 in chosen, which is not the same setting"
    assert expected in message(folder, "share+chosen")


@pytest.mark.parametrize(
    ("name", "dials"),
    [
        ("ada_snapkv+kivi", {"bits": 4, "window": 16}),
        ("kivi+ada_snapkv", {"bits": 4, "window": 16}),
        ("h2o_decode+pyramidkv", {"h2o_decode_window": 0.25, "window": 16}),
        ("pyramidkv+h2o_decode", {"h2o_decode_window": 0.25}),
    ],
)
def test_python_and_the_command_line_compose_the_same(name: str, dials: dict[str, Any], compose: Any) -> None:
    cfg = compose(f"method={name}", "model=tiny", *(f"method.{key}={value}" for key, value in dials.items()))
    config.check(cfg, {"method": name})
    method = kvbench.load_method(name, **dials)
    assert build(cfg.method, split_dials(config.defaults("method", name))) == method
    assert method.name in ("ada_snapkv+kivi", "pyramidkv+h2o_decode")


def test_the_list_of_methods_describes_combinations() -> None:
    method: Composition = config.method("pyramidkv+h2o_decode")
    assert set(method.notes) >= set(method.dials)


@dataclass(frozen=True)
class Above(Uniform):
    """Layer budgets by a part that refers to another part of the same method."""

    score: Score | None = None


def test_a_part_may_refer_to_another_part(tmp_path: Path) -> None:
    """A sweep builds the method of a configuration more than once, which must stay as it is."""
    text = f"layers:\n  _target_: {__name__}.Above\n  score: ${{..score}}\n"
    write(tmp_path, "base", BASE)
    write(tmp_path, "above", f"use: base\n{text}")
    node = read_method(tmp_path, "above")
    written = OmegaConf.to_yaml(node)
    methods = [build(node, split_dials(node)) for _ in range(2)]
    assert OmegaConf.to_yaml(node) == written and methods[0] == methods[1]
    eviction = methods[0].eviction
    assert eviction is not None and isinstance(eviction.layers, Above) and eviction.layers.score == eviction.score
    assert load(tmp_path, "above", width=5).eviction != eviction
