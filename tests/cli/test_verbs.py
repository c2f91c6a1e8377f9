"""The first screen, the help of every command, and a mistake in its words; in this process where nothing is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from kvbench.cli import run
from kvbench.cli.arguments import shell_command
from kvbench.cli.run_help import run_help, settings_text
from kvbench.cli.verbs import VERBS, main, overview
from kvbench.config import GROUPS, options
from kvbench.config.hydra_node import _GROUPS
from kvbench.config.schema import NODES, Config

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [[verb] for verb in VERBS] + [["report", word] for word in ("diff", "power", "parity")]
OF_KERNELS = [["kernels", word] for word in ("build", "list", "check")]  # their mistakes name kvbench kernels --help


def test_the_first_screen_is_the_overview_and_computes_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "kvbench"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, overview() + "\n", "")
    assert not list(tmp_path.iterdir())
    lines = done.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines[3 : 3 + len(VERBS)]] == list(VERBS)


def test_the_word_run_and_every_override_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(run, "main", lambda arguments: asked.append(list(arguments)) or 0)
    for arguments in (["run"], ["run", "seed=1"], ["seed=1"], ["-m"], ["--cfg", "job"]):
        assert main(arguments) == 0
    assert asked == [[], ["seed=1"], ["seed=1"], ["-m"], ["--cfg", "job"]]
    assert shell_command([]) == "python -m kvbench run", "a plan stores what computes again"


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return the exit status of a command, and what it printed."""
    try:
        status = main(words)
    except SystemExit as left:
        assert isinstance(left.code, int)
        status = left.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_first_screen(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer([word], capsys) == (0, overview() + "\n", "")


@pytest.mark.parametrize("words", [*COMMANDS, *OF_KERNELS], ids=" ".join)
def test_every_command_has_a_help_with_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text, errors = answer([*words, "--help"], capsys)
    assert (status, errors) == (0, "")
    assert re.match(rf"usage: kvbench ({' '.join(words)}|\[run\]) ", text)
    _, mark, examples = text.partition("\nexamples:\n")
    assert mark and re.match(rf"  kvbench ({' '.join(words)}\b|\w+=)", examples)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_unknown_option_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text, errors = answer([*words, "--frobnicate"], capsys)
    assert (status, text, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("kvbench: ") and errors.endswith(f"see kvbench {' '.join(words)} --help\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reprot"], "reprot: no such command. Did you mean 'report'?"),
        (["budget"], "budget: a setting needs a value, as in budget=…; see kvbench --help"),
        (["run", "reprot"], "reprot: an override is key=value"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate; see kvbench run --help"),
        (["--resolve", "--help"], "--resolve: says how --cfg prints the configuration; add --cfg job"),
    ],
)
def test_a_mistake_in_the_words_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(words, capsys) == (2, "", f"kvbench: {message}\n")


def test_the_help_of_run_has_all_that_can_be_chosen_and_set() -> None:
    text = run_help()
    assert max(map(len, text.splitlines())) <= 125
    words = set(re.findall(r"[\w/]+", text))
    assert {name for group in (*GROUPS, "experiment", "logger") for name in options(group)} <= words
    assert set(_GROUPS["launcher"]) <= words
    settings = settings_text()
    names = [name for name in Config.__dataclass_fields__ if name not in (*GROUPS, "logger")]
    assert re.findall(r"^(\w+):", settings, re.MULTILINE) == names
    below = [field.name for node in NODES.values() for field in fields(node)]
    assert re.findall(r"^  (\w+):", settings, re.MULTILINE) == below
    assert settings.count("#") >= len(names) - len(NODES) + len(below), "each setting has its comment"


def test_texts_call_a_command_by_its_name() -> None:
    """`python -m kvbench.report` is `kvbench report`."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "conf").rglob("*.yaml")]
    files += [*(ROOT / "kvbench").rglob("*.py"), *(ROOT / "scripts").glob("*")]
    stale = rf"python -m kvbench\.({'|'.join(VERBS)})\b(?!\.)"
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.name != "CHANGELOG.md"}
    assert [file.name for file, text in texts.items() if re.search(stale, text)] == []
