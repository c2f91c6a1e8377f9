"""`kvbench profile profile.pool=...`: the rows that fit into a pool, both full caches, and where they cross."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench.profile import compose, crossover, figure, measure, pool_figure, pool_table, pools, run
from kvbench.profile.__main__ import main
from kvbench.profile.crossover import MEMORY
from tests.helpers.tiny_profile import SMALL, lines, profile

pytestmark = pytest.mark.usefixtures("quick")

TOKEN = 4 * 2 * 2 * 32 * 4  # layers x KV heads x (key and value) x head_dim x bytes


def sized(*overrides: str) -> dict[tuple[str, object], tuple[int, int]]:
    """Return the rows of every cell, and the tokens of a row, by method and pool."""
    (group,) = compose.groups([*SMALL, *overrides])
    setting = run.setting_of(group)
    fills = {}
    for cell in pools.in_tokens(group.cells, group, setting):
        filled, about = pools.sized(cell, group, setting)
        fills[cell.variant.method.name, cell.pool] = filled.batch, about["row_tokens"]
    return fills


def test_throughput_against_the_pool_is_measured_shown_and_never_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["method=ada_snapkv", "budget=40", "profile.context=100", "profile.pool=1k,50,500", "profile.max_rows=12"]
    assert profile(*sweep, f"paths.outputs={tmp_path}") == 0
    records = lines(tmp_path)
    assert [(r["pool"], r["method"], r["batch"], r["status"]) for r in records] == [
        (MEMORY, "fullkv", 12, "ok"),
        (1024, "fullkv", 9, "ok"), (1024, "ada_snapkv", 12, "ok"),  # 106 and 46 tokens a row
        (50, "fullkv", 0, "no_room"), (50, "ada_snapkv", 1, "ok"),
        (500, "fullkv", 4, "ok"), (500, "ada_snapkv", 10, "ok"),
    ]  # fmt: skip
    assert records[3]["error"] == "a row needs 106 tokens (100 kept, 6 of its answer), the pool has 50"
    for record in records:
        assert record["token_bytes"] == TOKEN and record["capped"] == (record["batch"] == 12)
        if record["status"] == "ok":
            rows, kept = record["batch"], record["budget"] or record["context"]
            assert record["kv_bytes"] == rows * kept * TOKEN and record["row_tokens"] == kept + 6
            assert record["tokens_per_s"] == pytest.approx(rows / record["tpot_s"])
            seconds = rows * (record["prefill_s"] + record["compress_s"]) + 5 * record["tpot_s"]
            assert record["request_tokens_per_s"] == pytest.approx(rows * 6 / seconds)
    printed = capsys.readouterr().out
    assert " no room |" in printed and "ada_snapkv, 40, decode steps: " in printed
    assert "profile.max_rows=12 allows no more rows" in printed and "(12 rows, 1.24k)" in printed
    (folder,) = tmp_path.glob("profile/tiny-cpu-*")
    shown = json.loads((folder / "table.json").read_text())
    assert [row["pool"] for row in shown["rows"]] == [50, 50, 500, 500, 1024, 1024, MEMORY]
    row = shown["rows"][3]
    assert row["decode_of_constrained"] == pytest.approx(records[6]["tokens_per_s"] / records[5]["tokens_per_s"])
    assert row["decode_of_unconstrained"] == pytest.approx(records[6]["tokens_per_s"] / records[0]["tokens_per_s"])
    assert row["pool_bytes"] == 500 * TOKEN and len(shown["crossovers"]) == 4
    assert len((folder / "table.csv").read_text().splitlines()) == 8
    assert "- ada_snapkv, 40, whole requests: " in (folder / "table.md").read_text()
    assert (folder / "pool.png").is_file() and not (folder / "latency_memory.png").exists()

    def forbidden(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(run, "measure", forbidden)
    assert profile(*sweep, f"paths.outputs={tmp_path}") == 0
    assert capsys.readouterr().out == printed and len(lines(tmp_path)) == 7


def test_as_many_rows_as_fit() -> None:
    fills = sized("method=snapkv", "budget=40", "profile.context=100", "profile.pool=[105,106,211,212,4M]")
    assert [fills["fullkv", pool] for pool in (105, 106, 211, 212)] == [(0, 106), (1, 106), (1, 106), (2, 106)]
    assert fills["snapkv", 211] == (4, 46) and fills["snapkv", 2**22] == (256, 46)


def test_a_pool_in_bytes_has_as_many_tokens_as_fit() -> None:
    fills = sized("method=snapkv", "budget=40", "profile.context=100", "profile.pool=[1MiB,0.002GB,512]")
    assert {pool for _, pool in fills} == {MEMORY, 512, 2 * 10**6 // TOKEN}  # 1 MiB is 512 tokens


def test_slots_are_counted_by_their_bytes() -> None:
    """A quantised row takes fewer slots than it has tokens; a share of bytes takes that share."""
    fills = sized("method=kivi", "profile.context=400", "profile.pool=4k")
    assert fills["kivi", 4096][1] < 300 < fills["fullkv", 4096][1] == 406
    fills = sized("method=snapkv", "budget=0.25B", "profile.context=400", "profile.pool=4k")
    assert fills["snapkv", 4096] == (38, 106)


def test_the_unconstrained_full_cache_has_as_many_rows_as_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    large = ["method=fullkv", "profile.context=2000", "profile.pool=4k"]
    (group,) = compose.groups([*SMALL, *large])
    setting = run.setting_of(group)
    for free, few, many in ((60 * 2**20, 1, 12), (400 * 2**20, 60, 90), (10**15, 256, 256), (1000, 0, 0)):
        monkeypatch.setattr(pools.memory, "free_bytes", lambda *_, free=free, **__: free)
        filled, about = pools.sized(group.cells[0], group, setting)
        assert group.cells[0].pool == MEMORY and few <= filled.batch <= many
        assert filled.batch * about["row_tokens"] * TOKEN <= 0.9 * free


def test_rows_of_a_prompt_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = measure.stream, []

    def stream(model: Any, tokenizer: Any, draw: Any, **settings: Any) -> Any:
        def drawn(running: Any) -> Any:
            request = draw(running)
            if request is not None:
                asked.append((len(request.rows), len(request.prompts)))
            return request

        return real(model, tokenizer, drawn, **settings)

    monkeypatch.setattr(measure, "stream", stream)
    sweep = ["method=fullkv", "profile.context=100", "profile.pool=530", "profile.max_rows=5"]
    assert profile(*sweep, f"paths.outputs={tmp_path}") == 0
    assert asked == [(5, 1), (5, 1)]
    asked.clear()
    assert profile(*sweep, "profile.prompts=2", f"paths.outputs={tmp_path}/2") == 0
    assert asked == [(3, 1), (2, 1)] * 2
    assert {record["prompts"] for record in lines(tmp_path / "2")} == {2}


def test_each_variant_is_warmed_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed, real = [], run.measure

    def measured(loaded: Any, cell: Any, settings: Any, *rest: Any) -> Any:
        warmed.append((cell.variant.method.name, settings.warmup))
        return real(loaded, cell, settings, *rest)

    monkeypatch.setattr(run, "measure", measured)
    sweep = ["method=snapkv", "budget=40", "profile.context=100", "profile.pool=110,220", "profile.max_rows=3"]
    assert profile(*sweep, "profile.warmup=1", f"paths.outputs={tmp_path}") == 0
    assert warmed == [("fullkv", 1), ("fullkv", 0), ("snapkv", 1), ("fullkv", 0), ("snapkv", 0)]


def test_fewer_rows_are_tried_where_the_memory_is_less_than_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, real = [], run.measure

    def measured(loaded: Any, cell: Any, *rest: Any) -> Any:
        tried.append((cell.pool, cell.batch))
        if cell.batch > 14:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, cell, *rest)

    monkeypatch.setattr(run, "measure", measured)
    sweep = ["method=fullkv", "profile.context=100", "profile.pool=1590", "profile.max_rows=16"]
    assert profile(*sweep, f"paths.outputs={tmp_path}") == 0
    assert tried == [(MEMORY, 16), (MEMORY, 14), (1590, 15)]  # a pool of a given size has the rows that it has
    assert [(r["batch"], r["status"]) for r in lines(tmp_path)] == [(14, "ok"), (15, "oom")]


def test_a_published_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["model=shape/smollm2_135m", "model.layers=2", "model.dtype=float32", "threads=1", "progress=false"]
    sweep = ["method=ada_snapkv", "budget=64", "profile.context=200", "profile.pool=250,500", "profile.max_rows=4"]
    more = ["--format", "csv", "profile.new_tokens=6", "profile.warmup=0", f"paths.outputs={tmp_path}"]
    assert main([*more, *shape, *sweep]) == 0
    assert [record["batch"] for record in lines(tmp_path)] == [4, 1, 3, 2, 4]
    assert capsys.readouterr().out.splitlines()[0].startswith("model,name,budget,context,kernel,full_cache,pool,")


@pytest.mark.cuda
def test_on_a_gpu(tmp_path: Path) -> None:
    shape = ["model=shape/llama32_1b", "model.layers=2", "progress=false", "profile.new_tokens=16"]
    sweep = ["method=ada_snapkv", "budget=256", "profile.context=4080", "profile.pool=4k,32k", "profile.max_rows=300"]
    assert main([*shape, *sweep, f"paths.outputs={tmp_path}"]) == 0
    records = lines(tmp_path)
    assert [r["batch"] for r in records if r["pool"] != MEMORY] == [1, 15, 8, 120]
    for record in records:
        assert record["status"] == "ok" and record["steps_by_graph"] == 1
    assert records[-1]["tokens_per_s"] > records[-2]["tokens_per_s"]


def record(method: str, budget: int | None, pool: int | str, rate: float | None, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{method}-{budget}-{pool}-{more}", "method": method, "dials": {}, "budget": budget,
        "full_cache": budget is None, "context": 512, "kernel": "torch", "pool": pool, "batch": 4, "row_tokens": 100,
        "token_bytes": 1000, "capped": False, "status": "ok", "device": {"name": "chip"}, "tokens_per_s": rate,
        "request_tokens_per_s": rate, "peak_bytes": None, "base_bytes": None,
    } | more  # fmt: skip


def rates(full: Sequence[float | None], own: Sequence[float | None], memory: float | None) -> list[dict[str, Any]]:
    """Return invented records with these rates in pools of 1000, 2000, 4000 ... tokens. 0 means no room, None oom."""
    records = [record("fullkv", None, MEMORY, memory, status="oom" if memory is None else "ok")]
    for name, budget, values in (("fullkv", None, full), ("snapkv", 64, own)):
        for index, value in enumerate(values):
            status = {None: "oom", 0: "no_room"}.get(value, "ok")
            records.append(record(name, budget, 1000 * 2**index, value or None, status=status))
    return records


def compared(*arguments: Any) -> list[crossover.Crossover]:
    return [c for c in crossover.crossovers(pool_table.rows(rates(*arguments))) if c.rate == "tokens_per_s"]


def test_the_crossover_is_interpolated_between_its_neighbours() -> None:
    constrained, unconstrained = compared([10, 20, 80], [20, 40, 40], 30)
    assert constrained.verdict == unconstrained.verdict == "crosses" and (constrained.least, constrained.most) == (
        1000, 4000,
    )  # fmt: skip
    (change,) = constrained.crossings  # the ratio falls from 2 to 1/2: it is 1 in the middle, on a logarithmic axis
    assert change == crossover.Crossing(2000, 4000, round(2000 * 2**0.5), below=True)
    (change,) = unconstrained.crossings
    assert (change.low, change.high, change.below) == (1000, 2000, False) and change.pool == pytest.approx(
        1500, rel=0.1
    )
    words = crossover.in_words(constrained)
    assert words == "faster than the constrained full cache below 2.76k (between 1.95k and 3.91k)"


@pytest.mark.parametrize(
    ("full", "own", "memory", "verdicts"),
    [
        ([10, 20], [20, 40], 5, ("always", "always")),
        ([10, 20], [9, 19], 50, ("never", "never")),
        ([10, 20], [20, 40], None, ("always", "unknown")),
        ([0, 20], [20, 40], 30, ("always", "crosses")),  # the pool has no room for a row of the full cache
        ([0, 20], [0, 40], 50, ("always", "never")),
        ([None, None], [20, 40], 5, ("unknown", "always")),
        ([10, 20, 40], [20, None, 20], 5, ("crosses", "always")),
    ],
)
def test_verdicts(full: Any, own: Any, memory: float | None, verdicts: tuple[str, str]) -> None:
    assert tuple(c.verdict for c in compared(full, own, memory)) == verdicts


def test_no_size_is_invented_where_no_row_fits() -> None:
    (change,) = compared([0, 50], [20, 40], 5)[0].crossings
    assert change == crossover.Crossing(1000, 2000, None, below=True)
    assert "below a size between 1000 and 1.95k" in crossover.in_words(compared([0, 50], [20, 40], 5)[0])


def test_several_contexts_are_named() -> None:
    records = [r | {"context": n, "id": f"{r['id']}{n}"} for n in (512, 1024) for r in rates([1, 2], [2, 4], 3)]
    rows = pool_table.rows(records)  # type: ignore[arg-type]
    texts = crossover.lines(crossover.crossovers(rows), rows)
    assert len(texts) == 4 and texts[0].startswith("snapkv, 64, context 512, torch, decode steps: always faster than")
    assert "unconstrained (4 rows, 400) full cache" in texts[0]


@pytest.mark.parametrize(
    ("tokens", "text"), [(1000, "1000"), (1024, "1k"), (65536, "64k"), (100000, "97.7k"), (2**21, "2M"), (None, "–")]
)
def test_sizes_in_words(tokens: int | None, text: str) -> None:
    assert crossover.size(tokens) == text


def test_the_figure_has_dashed_full_caches_and_marks_the_crossover(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pictures: list[Any] = []
    monkeypatch.setattr(pool_figure.figure, "save", lambda picture, path, stamp: pictures.append(picture) or path)
    rows = pool_table.rows(rates([10, 20, 80], [20, 40, 40], 30))  # type: ignore[arg-type]
    assert pool_figure.draw(rows, "H", "D", tmp_path / "x.png") is not None
    axes = pictures[0].axes[0]
    lines_of = {line.get_label(): line for line in axes.lines}
    assert list(lines_of["snapkv, 64"].get_xdata()) == [1000, 2000, 4000]
    assert lines_of["snapkv, 64"].get_linestyle() == "-" and lines_of["full cache, same pool"].get_linestyle() == "--"
    level = next(line for name, line in lines_of.items() if name.startswith("full cache, all memory"))
    assert list(level.get_ydata()) == [30, 30] and level.get_linestyle() == "--"
    assert {text.get_text() for text in axes.texts} >= {"2.76k"}
    assert axes.get_xscale() == "log"
    few = pool_table.rows(rates([10], [20], 30))  # type: ignore[arg-type]
    assert pool_figure.draw(few, "H", "D", tmp_path / "y.png") is None
    assert figure.label_of(("snapkv", "full", False)) == "snapkv"
