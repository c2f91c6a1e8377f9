"""`kvbench methods`: what it says of each method, and the tables that are made from it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.cli import method_tables
from kvbench.cli.method_tables import MARKS, describe, markdown, short_table, written
from kvbench.cli.methods import main
from kvbench.common import paths
from kvbench.config import options
from kvbench.methods.allowance import check_bytes
from kvbench.methods.budgets import ByteShare
from kvbench.methods.load import load
from kvbench.methods.method import Method
from tests.helpers.methods import shipped

NAMES = sorted(options("method"))
ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_in_the_documents_are_those_of_now() -> None:
    for path, text in written().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `kvbench methods --write`"


def acts_of(method: Method) -> str:
    """Return when a composed method changes what is stored or read, by what its parts do and not by its YAML."""
    halves = () if method.store is None else method.store.halves
    encodes_later = any(half is not None and half.encoded(9000, 500) > half.encoded(500, 500) for half in halves)
    at_steps = method.decoding is not None or method.look is not None or encodes_later
    at_prefill = (method.evicts and not method.keeps_prompt) or method.store is not None or method.feed is not None
    return "both" if at_prefill and at_steps else "prefill" if at_prefill else "decode" if at_steps else "never"


@pytest.mark.parametrize("name", ["snapkv+think", "think+kivi", "snapkv+qaq", "h2o_decode+qaq", "fastgen_element+kivi"])
def test_a_combination_acts_when_its_parts_do(name: str) -> None:
    assert describe(name).acts == acts_of(load(paths.conf_dir() / "method", name))


@pytest.mark.parametrize("name", NAMES)
def test_a_description_says_what_the_method_is(name: str) -> None:
    """The description is read from the YAML alone, and agrees with the composed method."""
    known, method = describe(name), shipped()[name]
    without = "none, or bytes" if method.fits_forms else "none"
    assert known.budget == {"kept": "tokens kept, or bytes", "read": "tokens read", None: without}[method.promises]
    if known.budget.endswith("bytes"):
        check_bytes(method, ByteShare(0.5))  # raises if it takes no bytes
    assert known.storage == ("plain" if method.store is None else type(method.store).__name__)
    assert set(known.parts) == set(method.named_parts)
    assert [dial.name for dial in known.dials] == list(method.dials)
    assert known.acts == acts_of(method)
    assert known.gist.count("(") == known.gist.count(")") and "arXiv" not in known.gist
    assert 10 < len(known.gist) <= 240 and known.gist.endswith(tuple("abcdefghijklmnopqrstuvwxyz)"))
    assert known.paper
    assert [dial.name for dial in known.dials if not dial.help] == [], "a comment next to a dial says what it means"


def test_the_list_is_one_screen_with_a_line_for_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", lines[0].strip()) == ["method", "what it does", "acts", "budget", "paper"]
    assert [line.split()[0] for line in lines[2:-2]] == NAMES
    starts = [match.start() for match in re.finditer(r"-+", lines[1])]
    assert all(line[start - 1 : start] in ("", " ") for line in lines[:-2] for start in starts[1:])
    assert max(map(len, lines)) <= 110
    (snapkv,) = [re.split(r"  +", line) for line in lines if line.startswith("snapkv ")]
    assert snapkv[1:] == ["the tokens that the prompt's last queries attend to", "prefill", "kept", "2404.14469"]
    for name, line in zip(NAMES, lines[2:-2], strict=True):
        words = line[starts[1] : starts[2]].strip()
        assert len(words) > 20 and words.removesuffix(" …") in describe(name).gist


def test_json_and_markdown_hold_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in known] == NAMES
    (quest,) = [method for method in known if method["name"] == "quest"]
    assert quest["budget"] == "tokens read" and quest["acts"] == "decode" and quest["parts"] == {"look": "PageBounds"}
    assert quest["dials"][0] == {"name": "page", "default": "16", "help": "tokens of a page"}
    assert main(["--markdown"]) == 0
    text = capsys.readouterr().out
    assert text == markdown([describe(name) for name in NAMES]) + "\n"
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 8), line
    assert all(f"### {name}\n" in text for name in NAMES)


def test_one_method_and_a_combination(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["h2o_decode", "ada_snapkv+kivi"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert "acts: both; budget: tokens kept, or bytes; storage: plain" in first
    assert re.search(r"method\.decode_budget=null +tokens while generating", first)
    assert second.startswith("ada_snapkv+kivi\n") and "storage: Kivi" in second and "method.bits=2" in second
    assert "2407.11550" in second and "2402.02750" in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["snapk"], "method=snapk: no such method. Did you mean 'snapkv'?"),
        (["--write", "snapkv"], "--write snapkv: writes all methods; leave out the names"),
        (["--json", "--markdown"], "argument --markdown: not allowed with argument --json; see kvbench methods --help"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip() == f"kvbench: {message}"


def test_write_replaces_what_is_between_the_marks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(method_tables, "conf_dir", lambda: tmp_path / "conf")
    assert main(["--write"]) == 2, "there is no docs/guide.md"
    (tmp_path / "docs").mkdir()
    begin, end = MARKS
    for file in (tmp_path / "docs" / "guide.md", tmp_path / "docs" / "methods.md"):
        file.write_text(f"above\n{begin}\nSTALE\n{end}\nbelow\n")
    assert main(["--write"]) == 0
    known = [describe(name) for name in NAMES]
    assert (tmp_path / "docs" / "guide.md").read_text() == f"above\n{begin}\n\n{short_table(known)}\n\n{end}\nbelow\n"
    assert "STALE" not in (tmp_path / "docs" / "methods.md").read_text()
    (tmp_path / "docs" / "guide.md").write_text("no marks")
    assert main(["--write"]) == 2


def test_the_command_loads_no_torch() -> None:
    code = "import sys; from kvbench.cli.methods import main; main([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


STORES = """
from typing import Generic, TypeVar

import not_installed
from kvbench.methods import storage
from kvbench.methods.storage import Store
from kvbench.methods.store.kivi import Kivi
from kvbench.methods.store.qaq import Qaq as Renamed

T = TypeVar("T")


class Eight(Store):
    block = 8


class Nine(Eight):
    def family(self, dim):
        return [self]


class Twelve(storage.Store):
    pass


class Ten(Renamed):
    pass


class Eleven(Generic[T], Nine[T]):
    pass
"""


OF_STORE = {
    **dict.fromkeys(("own_stores.Nine", "own_stores.Ten", "own_stores.Eleven", "own_stores.Kivi"), "none, or bytes"),
    **dict.fromkeys(("own_stores.Eight", "own_stores.Twelve", "own_stores.Other", "no_such_module.Eight"), "none"),
}


@pytest.mark.parametrize(("store", "budget"), list(OF_STORE.items()))
def test_only_a_store_with_a_family_takes_bytes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, budget: str
) -> None:
    """The source of the class says it, without an import, and without bytes promised that the run would refuse."""
    (tmp_path / "own_stores.py").write_text(STORES)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert method_tables._budget({"store": {"_target_": store}}) == budget
