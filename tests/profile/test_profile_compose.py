"""The command line of the profile: lists, the full cache, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.profile import compose
from kvbench.profile.__main__ import main

SMALL = ["model=tiny", "kernel=torch", "progress=false", "threads=1", "profile.new_tokens=6", "profile.warmup=0"]


def test_lists_are_multiplied_and_the_full_cache_is_added() -> None:
    (group,) = compose.groups(
        [*SMALL, "method=snapkv,fullkv", "budget=40,0.5", "profile.context=200,100", "profile.batch=2,1"]
    )
    points = [(c.context, c.batch, c.variant.method.name, c.variant.budget) for c in group.cells]
    variants = [("fullkv", None), ("snapkv", 40), ("snapkv", 0.5)]
    assert points == [(n, b, *variant) for n in (100, 200) for b in (1, 2) for variant in variants]
    assert group.settings.per_cell() == {"new_tokens": 6, "warmup": 0, "repeats": 1}


def test_a_list_is_a_list_however_it_is_written() -> None:
    wanted = compose.groups([*SMALL, "profile.context=100,200", "method=snapkv", "budget=40"])
    for written in ("profile.context=[100,200]", "profile.context=[200, 100]"):
        assert compose.groups([*SMALL, written, "method=snapkv", "budget=40"])[0].cells == wanted[0].cells


def test_models_are_groups_of_their_own_and_globs_work() -> None:
    groups = compose.groups(["model=tiny,smollm2_135m", "method=glob(ada_*)", "budget=64", "profile.context=100"])
    assert [group.cfg["model"]["name"] for group in groups] == ["tiny", "smollm2_135m"]
    for group in groups:
        assert {c.variant.method.name for c in group.cells} == {"fullkv", "ada_snapkv", "ada_pyramidkv"}


def test_dials_tell_cells_apart() -> None:
    (group,) = compose.groups([*SMALL, "method=snapkv", "method.window=8,16", "budget=64", "profile.context=100"])
    assert [c.variant.method.dials.get("window") for c in group.cells] == [None, 8, 16]
    assert len({c.id for c in group.cells}) == 3


def test_an_experiments_lists_count_unless_the_command_line_has_its_own() -> None:
    (group,) = compose.groups([*SMALL, "model=tiny", "experiment=quickstart", "method=snapkv"])
    variants = {(c.variant.method.name, c.variant.budget) for c in group.cells}
    assert variants == {("fullkv", None), ("snapkv", 0.1), ("snapkv", 0.2), ("snapkv", 0.4)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["profile.contxt=3"], "profile.contxt=3: no such setting. Did you mean 'context'?"),
        (["profile.context=0"], "profile.context=0: must be integers from 1 to"),
        (["profile.context=[]"], "profile.context=[]: must be integers from 1 to"),
        (["profile.context=1k"], "profile.context=1k: must be integers"),
        (["profile.new_tokens=3"], "profile.new_tokens=3: must be an integer from 4 to"),
        (["profile.repeats=1,2"], "profile.repeats=1,2: takes one value"),
        (["profile.context=range(1,100000000)"], "profile.context=range(1,100000000): the sweep would have more than"),
        (["profile.context=1e40"], "profile.context=1e40: must be integers"),
        (["profile.batch=99999999"], "profile.batch=99999999: must be integers from 1 to 65536"),
        (["profile.pool=64k", "profile.batch=2"], "profile.batch=2: profile.pool decides how many rows decode"),
        (["profile.pool=0"], "profile.pool=0: must be sizes of a pool: tokens such as 65536 or 64k, or bytes such as"),
        (["profile.pool=[64k,4TB]"], "profile.pool=[64k,4TB]: must be sizes of a pool"),
        (["profile.pool=1.5"], "profile.pool=1.5: must be sizes of a pool"),
        (["profile.pool=true"], "profile.pool=true: must be sizes of a pool"),
        (["profile.max_rows=4"], "profile.max_rows=4: it is for profile.pool=TOKENS, which is not set"),
        (["profile.prompts=4"], "profile.prompts=4: it is for profile.pool=TOKENS, which is not set"),
        (["profile.pool=1k", "profile.max_rows=0"], "profile.max_rows=0: must be an integer from 1 to 4096"),
        (["profile.pool=1k", "engine.cache=masked"], "engine.cache=masked: it keeps all tokens, so a pool holds"),
        (["profile.context=range(1,200)", "profile.batch=range(1,200)"], "model=tiny kernel=torch"),
        (["budget=range(1,100000000)"], "budget=range(1,100000000): the sweep would have more than"),
        (["method=snapkv budget=4"], "method=snapkv budget=4: Hydra cannot read this value"),
        (["kernel=sdpa", "engine.cache=masked"], "kernel=sdpa: engine.cache=masked attends by torch alone"),
        (["+profile.graph=1"], "+profile.graph=1: no such setting"),
        (["limit=3"], "limit=3: the profile reads no samples"),
        (["benchmark=ruler"], "benchmark=ruler: the profile reads no samples"),
        (["benchmark.lengths=[9]"], "benchmark.lengths=[9]: the profile reads no samples"),
        (["engine.max_rows=9"], "engine.max_rows=9: profile.batch says how many"),
        (["hydra/launcher=fused"], "hydra/launcher=fused: the profile runs here"),
        (["method=snap"], "method=snap: no such method. Did you mean 'snapkv'?"),
        (["model=shape/llama31"], "model=shape/llama31: no such model. Did you mean 'shape/llama31_"),
        (["method.windw=3"], "method.windw=3: ada_pyramidkv has no setting 'windw'. Did you mean 'window'?"),
        (["budget=64,2.5"], "budget=2.5: a share must lie in (0, 1]"),
        (["budget=0.1", "profile.context=100"], "budget=0.1 (of 100 tokens: 10): ada_pyramidkv always keeps 32"),
        (["profile.context=8187"], "profile.context=8187: with 6 new tokens, more than the 8192 of model=tiny"),
        (["kernel=flash_attn", "profile.context=200"], "kernel=flash_attn: "),
        (["paths.outputs=/dev/null", "profile.context=200"], "paths.outputs: cannot write /dev/null"),
    ],
)
def test_a_mistake_is_one_line_and_measures_nothing(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = [] if any(o.startswith("paths.") for o in overrides) else [f"paths.outputs={tmp_path}"]
    assert main([*SMALL, *where, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kvbench: {message}") and len(error.splitlines()) == 1, error
    assert not any(file.stat().st_size for file in tmp_path.rglob("cells.jsonl"))


def test_help_and_cfg(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; sys.argv = ['profile', '--help']\n"
        "from kvbench.profile.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "shape/llama31_8b" in done.stdout and "new_tokens: 32" in done.stdout
    assert main([*SMALL, "profile.context=300,200", "--cfg"]) == 0
    printed = capsys.readouterr().out
    assert "new_tokens: 6" in printed and "- 200" in printed and "name: tiny" in printed
