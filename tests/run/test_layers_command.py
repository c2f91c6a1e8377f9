"""`kvbench layers`: the calibration of PrefixKV's drop ratios, resumed, and used by a run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kvbench
from kvbench.methods.layer_profile import drop_ratios
from kvbench.methods.scores.layer_column_sums import LayerColumnSums
from kvbench.run.layers import compute as computing
from kvbench.run.layers.command import main
from tests.helpers.methods import with_parts

GRID = ["model=tiny", "benchmark.lengths=[200,300]", "benchmark.depths=[50]", "progress=false", "threads=1"]


def calibrate(folder: Path, *overrides: str) -> int:
    return main([*GRID, f"paths.outputs={folder}", *overrides])


def written(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Return the profile, and the records of the prompts."""
    (path,) = folder.glob("layers/tiny-*/tiny.json")
    return path, [json.loads(line) for line in (path.parent / "samples.jsonl").read_text().splitlines()]


def test_a_model_is_calibrated_once_and_a_run_reads_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrate(tmp_path, "limit=1") == 0
    path, first = written(tmp_path)
    assert calibrate(tmp_path) == 0, "the second prompt is added in the same folder"
    path, records = written(tmp_path)
    assert records[:1] == first and len(records) == 2
    profile = json.loads(path.read_text())
    assert list(profile) == [str(tenth / 10) for tenth in range(10)]
    for index, share in enumerate(profile):
        rows = [record["ratios"][index] for record in records]
        assert profile[share] == pytest.approx([sum(column) / 2 for column in zip(*rows, strict=True)], abs=1e-6)
        assert sum(profile[share]) / 4 == pytest.approx(float(share), abs=0.02)
    about = json.loads(path.with_suffix(".about.json").read_text())
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["prompts"] == 2 and about["model"]["name"] == "tiny" and set(about["protocols"]) == {"needle"}
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"method=prefixkv_offline method.profile={path}")
    monkeypatch.setattr(computing, "_importance", None)  # it would fail if a prompt were prefilled again
    assert calibrate(tmp_path) == 0
    monkeypatch.setattr(computing, "versions", lambda: {"kvbench": "99"})
    assert calibrate(tmp_path) == 0, "an upgrade continues in the same folder"
    assert written(tmp_path)[0] == path
    assert json.loads(path.with_suffix(".about.json").read_text())["continued_with"] == {"kvbench": "99"}
    method = kvbench.load_method("prefixkv_offline", profile=str(path))
    loaded = kvbench.load_model("tiny")
    ids = torch.randint(3, 260, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    ((out,),) = kvbench.generate(loaded.model, loaded.tokenizer, [ids], [(method, 0.3)], max_new_tokens=4, stop_ids=[])
    assert out.kept_mean == 30 and len({layer[0] for layer in out.kept}) > 1


def test_the_importance_is_that_of_the_score(tmp_path: Path) -> None:
    """The prefill records the attention that the score of the method adds up, layer by layer."""
    assert calibrate(tmp_path, "limit=1") == 0
    _, (record,) = written(tmp_path)
    assert record["tokens"] > 200 and record["ratios"][0] == [0.0] * 4
    masses = []

    class Watching(LayerColumnSums):
        def __call__(self, ctx: Any) -> Any:
            masses.append(super().__call__(ctx)[0].double())
            return super().__call__(ctx)

    method = with_parts(kvbench.load_method("streaming_llm"), score=Watching())
    loaded = kvbench.load_model("tiny")
    prompt = computing_prompt(tmp_path)
    kvbench.generate(loaded.model, loaded.tokenizer, [prompt], [(method, 50)], max_new_tokens=1)
    assert drop_ratios(torch.stack(masses), 0.4, 2) == record["ratios"][4]


def computing_prompt(folder: Path) -> Any:
    """Return the first calibration prompt."""
    from kvbench.models.cache import ModelCache
    from kvbench.run.layers.command import _jobs

    return next(computing._prompts(_jobs([*GRID, f"paths.outputs={folder}"]), ModelCache()))[1]


def test_a_changed_table_is_refused_by_its_checksum(tmp_path: Path) -> None:
    assert calibrate(tmp_path, "limit=1") == 0
    path, _ = written(tmp_path)
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    with pytest.raises(ValueError, match="is not the file that .*about.json describes"):
        kvbench.load_method("prefixkv_offline", profile=str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=snapkv", "method=snapkv: kvbench layers does not read it; leave it out"),
        ("budget=0.3", "budget=0.3: kvbench layers does not read it; leave it out"),
        ("limit=1,2", "limit=1,2: takes one value; lists are for kvbench -m"),
        ("benchmark=nedle", "benchmark=nedle: no such benchmark. Did you mean 'needle'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert calibrate(tmp_path, override) == 2
    assert capsys.readouterr().err.strip() == f"kvbench: {message}" and not list(tmp_path.iterdir())


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, kvbench.run.layers.command as c; c._parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
