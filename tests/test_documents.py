"""Every command and every override in the documents is one that kvbench takes: composed and checked, not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvbench.config import options
from tests.helpers.documents import Shown, check, check_override, commands, overrides

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    str(file.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "notebooks/README.md")
    for file in ROOT.glob(pattern)
    if file.name != "CHANGELOG.md"  # which names what is gone
)
MISTAKES = {("method=ada_pyramid",)}  # shown as such


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes for a model's as long as nothing reads it."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def faults(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, file: str = "a.md") -> list[str]:
    """Return what is wrong with the commands and overrides of a document."""
    problems = []
    for shown in dict.fromkeys(commands(file, text)):
        if shown.words not in MISTAKES:
            problems += [f"{shown}\n    {error}" for error in _refused(lambda s=shown: check(s, folder, monkeypatch))]
    for shown in dict.fromkeys(overrides(file, text)):
        problems += [f"{shown}\n    {error}" for error in _refused(lambda s=shown: check_override(s, folder))]
    return problems


def _refused(tried) -> list[str]:  # type: ignore[no-untyped-def]
    try:
        tried()
    except (ValueError, SystemExit) as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("file", FILES)
def test_commands_and_overrides_are_taken(file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(folder / "cache"))
    problems = faults((ROOT / file).read_text(encoding="utf-8"), folder, monkeypatch, file)
    assert not problems, "\n".join(problems)


def test_readme_counts_the_methods() -> None:
    assert f"**Methods:** {len(options('method'))}, from" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_page_is_linked_from_the_list_of_pages() -> None:
    docs = ROOT / "docs"
    listed = set(re.findall(r"\]\(([\w/]+\.md)\)", (docs / "README.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(docs)) for page in docs.glob("**/*.md")}
    decisions = {name for name in pages if name.startswith("adr/0")}  # listed in adr/README.md
    assert listed == pages - decisions - {"README.md"}


def test_enough_is_found() -> None:
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in FILES}
    lines = [shown for file, text in texts.items() for shown in commands(file, text) if shown.is_line]
    spans = [shown for file, text in texts.items() for shown in overrides(file, text)]
    assert len(lines) > 50 and len(set(spans)) > 40
    assert Shown("docs/journey.md", ("engine.fused=false",), is_line=False) in spans
    assert {"report", "data"} <= {line.words[0] for line in lines if line.words}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("    kvbench method=snapkv budgt=128\n", "budgt=128: no such setting"),
        ("    kvbench -m method=snapkv,nope\n", "method=nope: no such method"),
        ("    kvbench benchmark=longbench \\\n        benchmark.protocol=nope\n", "benchmark.protocol=nope"),
        ("    kvbench report outputs --to reports\n", "unrecognized arguments"),
        ("    kvbench reprot outputs\n", "no such command"),
        ("1. Say `kvbench report --outt`.\n", "no flag --outt"),
        ("```sh\npython -m kvbench profile profile.contxt=4096  # a comment\n```\n", "profile.contxt"),
        ("Set `model.name=Llama-3-8B-Instruct`.\n", "model.name=Llama-3-8B-Instruct"),
        ("Set `benchmark.protocol=adakv`.\n", "benchmark.protocol=adakv"),
        ("Choose `kernel=auto|cdua`.\n", "kernel=cdua"),
        ("With `method=kivi budget=2.5`.\n", "budget=2.5"),
    ],
)
def test_a_mistake_is_found(text: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [fault] = faults(text, folder, monkeypatch)
    assert line in fault


@pytest.mark.parametrize(
    "text",
    [
        "    kvbench model=... method=snapkv budget=…      # a comment\n",
        "    kvbench score FOLDER\n",
        "`kvbench prompts … show=ID` prints it; `benchmark.path=FOLDER` and `shard=i/n` are for the reader.\n",
        "    (venv) cd x && .venv/bin/python -m kvbench experiment=quickstart\n",
        "`logger.wandb.mode=auto` and `+launcher.extra.reservation=icml +launcher.extra.mail-type=END`\n",
        "`settled=True`, `$x=1` and `kernel=` are no overrides to check.\n",
    ],
)
def test_what_is_right_passes(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(text, folder, monkeypatch) == []
