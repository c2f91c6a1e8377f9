"""`kvbench profile`: measuring, recording, resuming, and running out of memory."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvbench import models
from kvbench.models.cache import ModelCache
from kvbench.profile import compose, device, kernels, limits, measure, peaks, results, run
from kvbench.profile.__main__ import main
from kvbench_kernels.backends import AttentionSpec, Choice
from tests.helpers.tiny_profile import SMALL, lines, profile

pytestmark = pytest.mark.usefixtures("quick")


def places(records: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [(r["context"], r["batch"], r["method"], r["budget"]) for r in records]


def test_a_sweep_is_measured_recorded_shown_and_never_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["method=ada_snapkv", "budget=40,80", "profile.context=160,320", "profile.batch=1,3"]
    assert profile(*sweep, f"paths.outputs={tmp_path}") == 0
    records = lines(tmp_path)
    variants = [("fullkv", None), ("ada_snapkv", 40), ("ada_snapkv", 80)]
    assert places(records) == [(n, b, *variant) for n in (160, 320) for b in (1, 3) for variant in variants]
    for record in records:
        rows, kept = record["batch"], record["budget"] or record["context"]
        token = 4 * 2 * 2 * 32 * 4  # layers x KV heads x (key and value) x head_dim x bytes
        assert record["kept_mean"] == kept and record["kv_bytes"] == rows * kept * token
        assert record["kv_full_bytes"] == rows * record["context"] * token
        assert record["kv_slack_bytes"] >= rows * 6 * token  # room for the answer
        assert record["steps"] == 6 - 1 - 1  # the first token is the prefill's, and the first step lays the cache out
        assert 0 < record["tpot_low_s"] <= record["tpot_s"] <= record["tpot_high_s"]
        assert record["tokens_per_s"] == pytest.approx(rows / record["tpot_s"])
        assert record["prefill_s"] > 0 and record["compress_s"] > 0
        if rows == 1:
            assert record["ttft_s"] >= record["prefill_s"] + record["compress_s"]
        read = record["weight_bytes"] - 320 * 64 * 4 + record["kv_bytes"] + rows * 3 * token
        assert record["step_bytes"] == read and record["roofline_s"] == pytest.approx(read / record["bandwidth"])
        assert record["peak_bytes"] == max(record["peak_prefill_bytes"], record["peak_decode_bytes"])
        assert record["peak_bytes"] >= record["base_bytes"] and record["memory"] == "resident in the process"
        assert record["kernel"] == "torch" and record["device"]["type"] == "cpu" and record["versions"]["torch"]
    printed = capsys.readouterr().out
    assert printed.count("| ada_snapkv |") == 8 and "×full" in printed and ", 1 thread\n" in printed
    (folder,) = tmp_path.glob("profile/tiny-cpu-*")
    shown = json.loads((folder / "table.json").read_text())["rows"]
    assert [row["speedup"] for row in shown if row["name"] == "fullkv"] == [1] * 4
    assert shown[1]["speedup"] == pytest.approx(records[0]["tpot_s"] / records[1]["tpot_s"])
    assert shown[1]["kv_share"] == 0.25 and len((folder / "table.csv").read_text().splitlines()) == 13
    assert (folder / "table.md").read_text().count("| ada_snapkv |") == 8
    assert (folder / "latency_memory.png").is_file()

    def forbidden(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(run, "measure", forbidden)
    monkeypatch.setattr(models, "load", forbidden)
    before = (folder / "cells.jsonl").read_bytes()
    assert profile(*sweep, f"paths.outputs={tmp_path}") == 0
    assert (folder / "cells.jsonl").read_bytes() == before
    assert capsys.readouterr().out == printed


def test_other_settings_have_another_folder(tmp_path: Path) -> None:
    for extra in ([], ["seed=1"], ["model.dims.num_hidden_layers=2"], ["engine.cache=masked"], ["profile.repeats=2"]):
        assert profile("method=fullkv", "profile.context=40", f"paths.outputs={tmp_path}", *extra) == 0
    assert len(list(tmp_path.glob("profile/tiny-cpu-*"))) == 5


def test_devices_never_share_a_folder() -> None:
    (group,) = compose.groups([*SMALL, "profile.context=200"])
    setting = run.setting_of(group)
    other = setting | {"device": {"type": "cuda", "name": "NVIDIA H200", "memory": 1}}
    assert results.folder_of("o", setting) != results.folder_of("o", other)
    slower = setting | {"device": setting["device"] | {"threads": 7}}
    assert results.folder_of("o", setting) != results.folder_of("o", slower)


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["method=snapkv", "budget=40,50,60", "profile.context=80", f"paths.outputs={tmp_path}"]
    real, measured = run.measure, []

    def until(stop):
        def measured_or_interrupted(loaded, cell, *rest):
            if len(measured) == stop:
                raise KeyboardInterrupt
            measured.append(cell.id)
            return real(loaded, cell, *rest)

        return measured_or_interrupted

    monkeypatch.setattr(run, "measure", until(2))
    assert profile(*sweep) == 130
    assert "issue the same command again" in capsys.readouterr().err
    (file,) = tmp_path.glob("profile/*/cells.jsonl")
    with file.open("a") as torn:
        torn.write('{"id": "snapkv-b50')
    monkeypatch.setattr(run, "measure", until(99))
    assert profile(*sweep) == 0
    assert [record["id"] for record in lines(tmp_path)] == measured and len(set(measured)) == 4


def test_what_runs_out_of_memory_is_recorded_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["method=snapkv", "budget=40", "profile.context=80,160", "profile.batch=1,4", f"paths.outputs={tmp_path}"]
    real = measure.stream

    def small(model, tokenizer, draw, **settings):
        request = draw([])
        if request.variants[0].method.name == "fullkv" and len(request.prompts[0].ids) == 160:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        first = [request]
        return real(model, tokenizer, lambda running: first.pop() if first else draw(running), **settings)

    monkeypatch.setattr(measure, "stream", small)
    assert profile(*sweep) == 0
    lost = [record for record in lines(tmp_path) if record["status"] == "oom"]
    assert places(lost) == [(160, 1, "fullkv", None), (160, 4, "fullkv", None)]
    assert lost[0]["error"] == "CUDA out of memory. Tried to allocate 2 GiB" and len(lines(tmp_path)) == 8
    printed = capsys.readouterr().out
    assert sum("|       oom |" in line for line in printed.splitlines()) == 2
    monkeypatch.setattr(measure, "stream", real)
    assert profile(*sweep) == 0 and len(lines(tmp_path)) == 8
    assert profile(*sweep, "retry_oom=true") == 0
    assert [record["status"] for record in lines(tmp_path)[8:]] == ["ok", "ok"]
    assert "oom |" not in (next(tmp_path.glob("profile/*/table.md"))).read_text()


def test_a_copy_is_timed_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the current GPU would time the launch of a copy on another one."""
    waits: list[object] = []
    fake = SimpleNamespace(
        uint8=torch.uint8,
        zeros=lambda count, dtype, device: torch.zeros(16, dtype=dtype),
        empty_like=torch.empty_like,
        cuda=SimpleNamespace(synchronize=lambda place=None: waits.append(place)),
    )
    monkeypatch.setattr(device, "torch", fake)
    assert device.copy_bandwidth("cuda:1") > 0 and set(waits) == {"cuda:1"}


def test_a_cell_beyond_the_hosts_memory_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (group,) = compose.groups([*SMALL, "method=snapkv", "budget=40", "profile.context=4000", "profile.batch=64"])
    setting = run.setting_of(group)
    full, small = group.cells
    monkeypatch.setattr(limits.memory, "free_bytes", lambda *_, **__: 200 * 2**20)
    assert str(limits.too_large(full, group, setting)).startswith("not tried: about 0.7 GiB")
    assert limits.too_large(small, group, setting) is None
    assert limits.too_large(full, group, setting | {"device": {"type": "cuda"}}) is None
    monkeypatch.setattr(limits.memory, "free_bytes", lambda *_, **__: 1000)
    with pytest.raises(ValueError, match="model=tiny: its weights take"):
        limits.check_weights(group, setting, ModelCache())
    unknown = setting["shape"] | {"weight_bytes": 0}
    with caplog.at_level(logging.INFO):
        limits.check_weights(group, setting | {"shape": unknown}, ModelCache())
    assert "quantised and not here yet" in caplog.text


def test_a_cell_that_fails_is_not_recorded_and_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["method=snapkv,h2o", "budget=40", "profile.context=80", f"paths.outputs={tmp_path}"]
    real = run.measure

    def failing(loaded, cell, *rest):
        if cell.variant.method.name == "snapkv":
            raise RuntimeError("something broke\nat length")
        return real(loaded, cell, *rest)

    monkeypatch.setattr(run, "measure", failing)
    assert profile(*sweep) == 1
    assert "kvbench: snapkv-40, 1 x 80 tokens, torch: something broke\n" in capsys.readouterr().err
    assert [record["method"] for record in lines(tmp_path)] == ["fullkv", "h2o"]
    monkeypatch.setattr(run, "measure", real)
    assert profile(*sweep) == 0 and [record["method"] for record in lines(tmp_path)] == ["fullkv", "h2o", "snapkv"]


def test_a_broken_promise_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "broken_promise", lambda variant, _: RuntimeError(f"{variant} kept all"))
    assert profile("method=snapkv", "budget=40", "profile.context=80", f"paths.outputs={tmp_path}") == 1
    assert "snapkv-40 kept all" in capsys.readouterr().err


def test_two_processes_do_not_measure_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (group,) = compose.groups([*SMALL, "profile.context=200", f"paths.outputs={tmp_path}"])
    setting = run.setting_of(group)
    with results.open_results(results.folder_of(tmp_path, setting), setting):
        assert profile("profile.context=200", f"paths.outputs={tmp_path}") == 2
    assert "already writing" in capsys.readouterr().err


def test_the_steps_in_which_a_batch_settles_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is recorded in the first steps. The record says how many of the other steps it ran."""
    seconds = iter(range(1000))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(seconds) ** 2))

    def stream(*args, on_step, **settings):
        for step in range(15):
            on_step(7.0, step >= 9)
        yield from real(*args, **settings)

    real = measure.stream
    monkeypatch.setattr(measure, "stream", stream)
    warm_up = ["profile.warmup=0", "profile.repeats=1"]
    assert profile("method=fullkv", "profile.context=80", *warm_up, f"paths.outputs={tmp_path}") == 0
    (record,) = lines(tmp_path)
    assert record["first_step_s"] == 7 and record["steps"] == 15 - measure._SETTLING
    assert record["tpot_low_s"] > 2 * measure._SETTLING - 1  # stamps are squares: later steps are longer
    assert record["steps_by_graph"] == pytest.approx(6 / 10)


def test_prompts_are_different_and_the_same_for_all() -> None:
    (group,) = compose.groups([*SMALL, "method=snapkv", "budget=40", "profile.context=80", "profile.batch=3"])
    full, small = (measure.random_prompts(cell, 320, 0) for cell in group.cells)
    assert full == small and len({prompt.ids for prompt in full}) == 3
    assert {len(prompt.ids) for prompt in full} == {80} and max(map(max, (p.ids for p in full))) < 320
    assert measure.random_prompts(group.cells[0], 320, 1) != full


PEAKS = """
import torch
from kvbench.profile import peaks
gauge = peaks.HostMeter()
gauge.start()
torch.ones(64 * 2**20, dtype=torch.uint8)
gauge.prefilled()
torch.ones(16 * 2**20, dtype=torch.uint8)
peak = gauge.read()
print("none" if peak is None else f"{peak.prefill - peak.base} {peak.decode - peak.base}")
"""


def test_the_hosts_peak_is_seen_in_the_part_it_belongs_to() -> None:
    """Read the peaks in a process of its own: after other tests, the heap has free room, which stays resident."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "none":
        assert not Path("/proc/self/clear_refs").exists()
    else:
        prefill, decode = map(int, done.stdout.split())
        assert prefill > 60 * 2**20 > decode > 12 * 2**20


def test_kernels_have_the_name_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = "kernel=auto,sdpa,torch"
    (group,) = compose.groups([*SMALL[:1], *SMALL[2:], kernel, "method=fullkv", "profile.context=80"])
    assert [cell.kernel for cell in group.cells] == ["auto", "sdpa", "torch"]
    setting, asks = run.setting_of(group), []
    monkeypatch.setattr(
        kernels, "choose_backend", lambda name, use: asks.append(use) or Choice(name.replace("auto", "sdpa"), "")
    )
    named = kernels.with_kernels(group.cells, setting, "cpu")
    assert [cell.kernel for cell in named] == ["sdpa", "torch"]
    assert asks[0] == AttentionSpec(torch.device("cpu"), torch.float32, head_dim=32, group=2)
    masked = setting | {"engine": {"cache": "masked"}}
    assert [cell.kernel for cell in kernels.with_kernels(group.cells[:1], masked, "cpu")] == ["torch"]


def test_a_record_names_the_kernel_that_was_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = ["method=fullkv", "profile.context=80", f"paths.outputs={tmp_path}"]
    assert profile("kernel=sdpa,torch", *cell) == 0
    assert [record["kernel"] for record in lines(tmp_path)] == ["sdpa", "torch"]
    real = measure.stream
    monkeypatch.setattr(measure, "stream", lambda *args, kernel, **kw: real(*args, kernel="torch", **kw))
    assert profile("kernel=sdpa", *cell, "seed=3") == 1
    assert "kernel=sdpa: the engine used torch" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "json", "latex"])
def test_formats_of_what_is_printed(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile("method=fullkv", "profile.context=80", f"paths.outputs={tmp_path}", "--format", form) == 0
    out = capsys.readouterr().out
    if form == "json":
        assert json.loads(out)[0]["rows"][0]["name"] == "fullkv"
    else:
        assert out.startswith({"csv": "model,name,budget,context", "latex": "% tiny, float32 on"}[form])


def test_the_gpus_peak_is_what_its_allocator_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test needs no GPU: it invents the numbers of two devices."""
    counts = {"memory_allocated": [5, 7], "max_memory_allocated": [50, 70], "max_memory_reserved": [90, 100]}
    resets = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: resets.append(index))
    for name in counts:
        monkeypatch.setattr(torch.cuda, name, lambda index, name=name: counts[name][index])
    gauge = peaks.CudaMeter()
    gauge.start()
    gauge.prefilled()
    counts |= {"max_memory_allocated": [20, 30], "max_memory_reserved": [40, 50]}
    assert gauge.read() == peaks.Peak(base=12, prefill=120, decode=50, reserved=190)
    assert resets == [0, 1, 0, 1]


@pytest.mark.cuda
def test_on_a_gpu(tmp_path: Path) -> None:
    shape = ["model=shape/llama32_1b", "model.layers=2", "progress=false", "profile.new_tokens=8"]
    sweep = ["method=ada_snapkv", "budget=256", "profile.context=2048,4096", "profile.batch=1,4"]
    assert main([*shape, *sweep, f"paths.outputs={tmp_path}"]) == 0
    records = lines(tmp_path)
    assert len(records) == 8 and {record["device"]["type"] for record in records} == {"cuda"}
    for record in records:
        assert record["status"] == "ok" and record["memory"] == "allocated on the GPU"
        assert record["base_bytes"] >= record["weight_bytes"]
        assert record["peak_bytes"] >= record["base_bytes"] + record["kv_bytes"]
        assert record["reserved_bytes"] >= record["peak_bytes"] and record["bandwidth"] > 1e11


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"context": "many"}, "context"),
        ({"tpot_s": None}, "tpot_s"),
        ({"status": "fine"}, "status"),
        ({"device": []}, "device"),
        ({"kv_bytes": -1}, "kv_bytes"),
    ],
)
def test_a_damaged_record_is_one_line_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], fault: str
) -> None:
    cell = ["method=fullkv", "profile.context=80", f"paths.outputs={tmp_path}"]
    assert profile(*cell) == 0
    (file,) = tmp_path.glob("profile/*/cells.jsonl")
    file.write_text(json.dumps(lines(tmp_path)[0] | change) + "\n")
    assert profile(*cell) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f"kvbench: {file}, line 1: {fault}"), error


def test_a_record_without_its_numbers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["method=fullkv", "profile.context=80", f"paths.outputs={tmp_path}"]
    assert profile(*cell) == 0
    (file,) = tmp_path.glob("profile/*/cells.jsonl")
    record = lines(tmp_path)[0]
    del record["kv_bytes"]
    file.write_text(json.dumps(record) + "\n")
    assert profile(*cell) == 2
    assert "numbers are missing" in capsys.readouterr().err


def test_a_row_that_fails_is_not_recorded_as_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer ends early, so its times are not those of the cell."""
    real = measure.run

    def failing(*arguments: Any) -> measure.Pass:
        result = real(*arguments)
        return replace(result, generations=[replace(row, error="a logit is not finite") for row in result.generations])

    monkeypatch.setattr(measure, "run", failing)
    assert profile("method=fullkv", "profile.context=80", f"paths.outputs={tmp_path}") == 1
    assert "a logit is not finite" in capsys.readouterr().err and lines(tmp_path) == []
