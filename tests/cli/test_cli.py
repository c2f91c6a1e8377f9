"""The command line, as a user sees it: in a process of its own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.cli.run import _explained
from tests.helpers import forked

TINY = ["model=tiny", "benchmark.lengths=[300]", "benchmark.depths=[0,100]", "benchmark.max_new_tokens=5", "budget=100"]


def kvbench(*args: str, cwd: Path, full: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    import os

    env = os.environ | {"COLUMNS": "200"} | variables
    env.pop("HYDRA_FULL_ERROR", None)
    if full:
        env["HYDRA_FULL_ERROR"] = "1"
    return forked.run(args, cwd, env)


def records(root: Path) -> dict[str, list[dict]]:
    """Label → stored records, without what differs between two runs of the same work."""
    rows_by_run = {}
    for path in sorted(root.glob("runs/*/*/*/samples.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.pop("timings"), row.pop("time"), row.pop("rows"), row.pop("slack_bytes")
        rows_by_run[path.parent.name] = rows
    return rows_by_run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["method=ada_pyramid"], "kvbench: method=ada_pyramid: no such method. Did you mean 'ada_pyramidkv'?"),
        (["method.windw=3"], "kvbench: method.windw=3: ada_pyramidkv has no setting 'windw'. Did you mean 'window'?"),
        (["method=kivi", "method.window=3"], "kvbench: method.window=3: kivi has no setting 'window'."),
        (["budgt=3"], "kvbench: budgt=3: no such setting. Did you mean 'budget'?"),
        (["paths.runs=x"], "kvbench: paths.runs=x: no such setting. Did you mean 'paths.outputs'?"),
        (["seed=abc"], "kvbench: seed=abc: Value 'abc'"),
        (["budget=1.5"], "kvbench: budget=1.5: a share must lie in (0, 1]"),
        (["method=snapkv", "budget=null"], "kvbench: budget=null: give tokens"),
        (["method=kivi", "method.bits=3"], "kvbench: method.bits=3: must be 2, 4 or 8"),
        (["benchmark.depths=[120]"], "kvbench: benchmark.depths=120: give a whole number from 0 to 100"),
        (["model=local"], "kvbench: model.path"),
        (["experiment=quickstrat"], "kvbench: experiment=quickstrat: no such experiment. Did you mean 'quickstart'?"),
        (["method.name=h2o"], "kvbench: method.name=h2o: must be ada_pyramidkv"),
        (["method.score.window=3"], "kvbench: method.score: parts are set by the dials"),
        (["method.select=null"], "kvbench: method.select: parts are set by the dials"),
        (["model.max_length=abc", "model=tiny"], "kvbench: model.max_length=abc: must be an integer"),
        (["paths.outputs=/dev/null"], "kvbench: paths.outputs: cannot write /dev/null"),
        (["-m", "method=snapkv,h2o", "method.kernl=5"], "kvbench: method.kernl=5: snapkv has no setting"),
        (["~method"], "kvbench: "),
        (["-m", "method=snapkv,nope"], "kvbench: method=nope: no such method."),
        (["-m", "budget=64,2.5"], "kvbench: budget=2.5: a share must lie in (0, 1]"),
        (["kernel=cdua"], "kvbench: kernel=cdua: no such kernel. Did you mean 'cuda'?"),
        (["kernel=sdpa", "engine.cache=masked"], "kvbench: kernel=sdpa: engine.cache=masked attends by torch alone"),
        (["engine.graph=yes"], "kvbench: engine.graph=yes: must be one of auto, true, false"),
    ],
)
def test_a_mistake_is_one_line(args, message, tmp_path):
    """Also with an empty cache: nothing is fetched before the mistake is told."""
    done = kvbench(*args, cwd=tmp_path, KVBENCH_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "outputs" / "runs").exists()
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("kernel=cuda", "kernel=cuda: needs an NVIDIA GPU, but the model is on device=cpu"),
        ("engine.graph=true", "engine.graph=true: CUDA graphs need a GPU, and the model is on device=cpu"),
    ],
)
def test_a_kernel_that_cannot_run_is_told_before_weights_are_loaded(arg, message, tmp_path):
    done = kvbench(*TINY, "model.device=cpu", arg, "progress=false", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"kvbench: {message}"
    assert not list(tmp_path.rglob("samples.jsonl")) or not any(
        p.stat().st_size for p in tmp_path.rglob("samples.jsonl")
    )


def test_a_traceback_on_request(tmp_path):
    done = kvbench("budget=1.5", cwd=tmp_path, full=True)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_help_of_run_and_cfg_load_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['kvbench', {!r}, *{!r}]\n"
        "from kvbench.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'torch was imported'"
    )
    for args in (["run", "--help"], ["--cfg", "job"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(args[0], args[1:])], cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert "ada_pyramidkv" in done.stdout
        assert "budget: 0.2" in done.stdout


def test_tab_completion(tmp_path):
    import os

    env = os.environ | {"COMP_LINE": "kvbench method=ada_s", "COMP_POINT": "20"}
    done = subprocess.run(
        [sys.executable, "-m", "kvbench", "-sc", "query=bash"], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert "method=ada_snapkv" in done.stdout


def test_a_sweep_is_its_single_runs_and_resumes_to_nothing(tmp_path):
    """Compare records prediction by prediction; issued again, nothing is computed and no model is loaded."""
    sweep = kvbench("-m", *TINY, "method=fullkv,snapkv,h2o_decode", "paths.outputs=a", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    for method in ("fullkv", "snapkv", "h2o_decode"):
        single = kvbench(*TINY, f"method={method}", "paths.outputs=b", cwd=tmp_path)
        assert single.returncode == 0, single.stderr
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert len(records(tmp_path / "a")) == 3
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "runs").rglob("*") if p.is_file()}
    again = kvbench("-m", *TINY, "method=fullkv,snapkv,h2o_decode", "paths.outputs=a", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "runs").rglob("*") if p.is_file()}
    assert again.stdout == sweep.stdout
    assert sweep.stdout.count("| fullkv") == 1
    assert "2 of 2 samples recorded, nothing to compute" in again.stderr


def test_a_sweep_sets_a_dial_that_the_default_method_lacks(tmp_path):
    """Methods without the dial run once, without it. Those of a pattern that lack a file are left out."""
    methods = "method=glob([h2o_decode,tova,fullkv,headkv])"
    done = kvbench("-m", *TINY, methods, "method.buffer=2", "paths.outputs=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| h2o_decode" in done.stdout and "| tova" in done.stdout
    configs = [path.read_text() for path in (tmp_path / "a" / "runs").rglob("config.yaml")]
    assert len(configs) == 3 and sum("buffer: 2" in config for config in configs) == 2
    assert "method.buffer: no dial of fullkv, headkv, whose runs go without it" in done.stderr
    left_out = next(line for line in done.stderr.splitlines() if "left out of the sweep" in line)
    assert "method=headkv: method.table=: must be" in left_out and "kvbench heads model=tiny" in left_out
    (plan,) = (tmp_path / "a" / "plans").glob("*.json")
    assert "method.buffer=2" in plan.read_text() and "choice(" not in plan.read_text()


def test_a_sweep_says_which_job_failed_and_keeps_the_others(tmp_path):
    """A budget that only this prompt makes impossible: the other job is recorded, the exit code says failure."""
    args = [a for a in TINY if not a.startswith("budget")]
    done = kvbench("-m", *args, "method=snapkv", "budget=0.01,0.4", cwd=tmp_path)
    assert done.returncode == 2
    assert "method.window=32" in done.stderr
    assert "0.4" in done.stdout
    rows_by_run = records(tmp_path / "outputs")
    assert [len(rows) for name, rows in rows_by_run.items() if "b0.4" in name] == [2]
    states = [json.loads(p.read_text())["status"] for p in sorted(tmp_path.glob("outputs/runs/*/*/*/status.json"))]
    assert states == ["done"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "paths.outputs: cannot write there (No space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out/runs"), "paths.outputs: cannot write out/runs"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file or directory"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "heads.json"), "heads.json: No such file"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
    ],
)
def test_only_trouble_with_the_disk_is_about_the_outputs(error: OSError, expected: str) -> None:
    assert _explained(error, [], "out").startswith(expected)
