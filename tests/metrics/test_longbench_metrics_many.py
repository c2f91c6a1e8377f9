"""Many LongBench scores at once, and what it costs to load the metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvbench.metrics
from kvbench.metrics import longbench_score, score_many

ROUGE = longbench_score("vcsum", "北京", ["北京"])
ROWS = [
    {"dataset": "trec", "prediction": "Food", "answers": ["Food"], "all_classes": ["Food", "Date"]},
    {"dataset": "lcc", "prediction": " x", "answers": ["x"], "all_classes": None},
    {"dataset": "vcsum", "prediction": "北京", "answers": ["北京"]},
    {"dataset": "gov_report_e", "prediction": "", "answers": ["a"]},
]


@pytest.mark.parametrize("workers", [1, 2, None])
def test_score_many(workers: int | None) -> None:
    rows = ROWS * 40  # more than one chunk
    expected = [1.0, 0.67, ROUGE, 0.0] * 40
    assert score_many(rows, workers=workers) == expected
    expected[1::4] = [1.0] * 40
    detailed = score_many(iter(rows), workers=workers, detail=True, strip="leading", code_backend="indel")
    assert [next(iter(each.values())) for each in detailed] == expected
    assert set(detailed[1]) == {"code_sim", "code_sim_difflib", "code_sim_indel"} and set(detailed[2]) == {"rouge_l_zh"}


def test_score_many_shows_a_bar_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert score_many(ROWS) and capsys.readouterr().err == ""
    assert score_many(ROWS, progress=True) and "scoring" in capsys.readouterr().err
    assert score_many([]) == []


def test_score_many_finds_mistakes_before_it_starts() -> None:
    with pytest.raises(ValueError, match=r"^dataset=nope: LongBench has no such dataset"):
        score_many([*ROWS, {"dataset": "nope"}], workers=2)
    with pytest.raises(ValueError, match=r"^benchmark\.strip=all: choose none or leading$"):
        score_many([], strip="all")
    with pytest.raises(ValueError, match=r"^workers=0: at least 1$"):
        score_many(ROWS, workers=0)


# ---- imports -------------------------------------------------------------------------------------


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "default", str(script)]
    return subprocess.run(command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True)


def test_importing_the_metrics_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, kvbench.metrics\n"
        "light = {m for m in sys.modules if m.startswith('kvbench.metrics')}\n"
        "from kvbench.metrics import longbench_score, score_many\n"
        "longbench_score('qasper', 'a', ['a'])\n"
        "heavy = {'rouge', 'jieba', 'nltk', 'numpy', 'rapidfuzz', 'fuzzywuzzy', 'torch', 'tqdm'} & set(sys.modules)\n"
        "print(light, heavy)\n"
    )
    assert run(code, tmp_path).stdout == "{'kvbench.metrics'} set()\n"
    assert kvbench.metrics.longbench_score is longbench_score and "score_many" in dir(kvbench.metrics)
    with pytest.raises(AttributeError, match="no attribute 'longbench_scre'"):
        kvbench.metrics.longbench_scre  # noqa: B018


def test_jieba_is_silent_and_leaves_no_cache(tmp_path: Path) -> None:
    code = "from kvbench.metrics import longbench_score\nprint(longbench_score('vcsum', '北京', ['北京']) > 0.99)\n"
    done = run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    code = (
        "from kvbench.metrics import score_many\n"
        "score_many([{'dataset': 'lcc', 'prediction': 'x', 'answers': ['x']}] * 99, workers=2)\n"
    )
    done = run(code, tmp_path)
    assert done.returncode == 1
    told = "RuntimeError: score_many: a worker process ended. Call it below `if __name__"
    assert any(line.startswith(told) for line in done.stderr.splitlines())  # Python may warn about workers after it
