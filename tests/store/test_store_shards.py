"""Several writers of item run: shards side by side, everybody else item after the other, readers see item run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvbench.report.present import present
from kvbench.store import load_run, load_runs
from kvbench.store.shards import merged
from tests.helpers.fake_runs import make_run, store_run
from tests.helpers.store_runs import OPEN, child, ids, open_run, record

ALL = {**OPEN, "num_samples": 4}


def open_all(root: Path, shard: tuple[int, int] | None, **changes: Any) -> Any:
    return open_run(root, **{**ALL, **changes}, shard=shard)


def status(folder: Path, name: str = "status.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_shards_write_side_by_side_and_are_read_as_one(tmp_path: Path) -> None:
    with open_all(tmp_path, (1, 2)) as first, open_all(tmp_path, (2, 2)) as second:
        assert first.path == second.path
        assert load_run(first.path).status["status"] == "running"
        second.append(record("b"))
        first.append(record("c"))
        first.append(record("a"))
        assert first.finish() == "partial"
        assert load_run(first.path).status["status"] == "running"  # the second still is
        second.append(record("d"))
        assert second.finish() == "done"
    files = {name: (first.path / name).read_text().count("\n") for name in ("samples-1of2.jsonl", "samples-2of2.jsonl")}
    assert files == {"samples-1of2.jsonl": 2, "samples-2of2.jsonl": 2}
    assert not (first.path / "samples.jsonl").exists()
    stored = load_run(first.path)
    assert [sample["id"] for sample in stored.samples] == ["a", "b", "c", "d"]
    assert stored.status == status(first.path) and stored.status["status"] == "done"
    assert (stored.status["recorded"], stored.status["samples"]) == (4, 4)
    assert status(first.path, "status-1of2.json")["status"] == "partial"
    with open_all(tmp_path, None) as whole:  # whoever comes later knows what the shards did
        assert whole.done_ids() == set("abcd")
        with pytest.raises(ValueError, match="the sample a is already recorded"):
            whole.append(record("a"))
    assert load_run(first.path).status["status"] == "done"


def test_one_of_one_is_no_shard(tmp_path: Path) -> None:
    with open_all(tmp_path, (1, 1), info={"slurm": "7"}) as run:
        run.append(record("a"))
        assert run.finish() == "partial"
    assert {file.name for file in run.path.iterdir()} == {
        ".lock", ".lock-open", "config.yaml", "manifest.json", "samples.jsonl", "status.json",
    }  # fmt: skip
    assert load_run(run.path).status == status(run.path) and status(run.path)["slurm"] == "7"


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (1, 0)])
def test_a_shard_that_there_is_not(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"shard={shard[0]}/{shard[1]}: must be one of"):
        open_all(tmp_path, shard)
    assert list(tmp_path.iterdir()) == []


def test_only_the_own_file_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for shard, name in (((1, 2), "a"), ((2, 2), "b")):
        with open_all(tmp_path, shard) as run:
            run.append(record(name))
            path = run.path
    own, other = path / "samples-1of2.jsonl", path / "samples-2of2.jsonl"
    whole = own.read_bytes()
    for file in (own, other):
        with file.open("ab") as end:
            end.write(b'{"id": "to')
    broken = other.read_bytes()
    with open_all(tmp_path, (1, 2)) as run:
        assert run.done_ids() == {"a", "b"}
    assert own.read_bytes() == whole and other.read_bytes() == broken
    assert [m for m in caplog.messages if "torn" in m] == [
        f"{path / 'samples-1of2.jsonl'}: dropped a torn last line of 10 bytes"
    ]
    other.write_bytes(b"rubbish\n" + broken)
    for use in (lambda: open_all(tmp_path, (1, 2)), lambda: load_run(path)):
        with pytest.raises(ValueError, match=r"samples-2of2\.jsonl, line 1: not valid JSON"):
            use()


def lines(*records: tuple[str, str, str, int]) -> bytes:
    texts = [json.dumps(record(name, status, time=time, n=n)) for name, status, time, n in records]
    return b"".join(text.encode() + b"\n" for text in texts)


def test_one_record_per_id(tmp_path: Path) -> None:
    """An answer before an out-of-memory row, wherever it stands; of two alike the later."""
    first, second = tmp_path / "samples.jsonl", tmp_path / "samples-1of2.jsonl"
    first.write_bytes(
        lines(("a", "oom", "t9", 0), ("a", "ok", "t1", 1), ("a", "oom", "t9", 2), ("b", "ok", "t1", 0),
              ("b", "ok", "t0", 1), ("c", "ok", "t1", 0), ("d", "oom", "t9", 0), ("e", "oom", "t2", 0))
    )  # fmt: skip
    second.write_bytes(lines(("c", "oom", "t2", 9), ("d", "ok", "t1", 9), ("b", "ok", "t9", 9), ("e", "oom", "t1", 9)))
    for order in ([first, second], [second, first]):
        result = {name: (item["status"], item["n"]) for name, item in merged(order).items()}
        assert result == {"a": ("ok", 1), "b": ("ok", 9), "c": ("ok", 0), "d": ("ok", 9), "e": ("oom", 0)}


@pytest.mark.parametrize(
    ("written", "recorded", "expected"),
    [
        ({"1of2": "running", "2of2": "failed"}, 4, "failed"),
        ({"1of2": "running", "2of2": "preempted"}, 4, "running"),
        ({"1of2": "preempted", "2of2": "partial"}, 4, "preempted"),
        ({"1of2": "partial", "2of2": "partial"}, 4, "done"),
        ({"1of2": "partial", "2of2": "partial"}, 3, "partial"),
        ({"": "done", "1of2": "running"}, 0, "done"),
        ({"": "failed", "1of2": "partial"}, 4, "failed"),
        ({"": "partial"}, 4, "partial"),
        ({}, 4, None),
    ],
)
def test_the_status_of_all_writers(
    tmp_path: Path, written: dict[str, str], recorded: int, expected: str | None
) -> None:
    with open_all(tmp_path, None) as run:
        for name in "abcd"[:recorded]:
            run.append(record(name))
    (run.path / "status.json").unlink()
    for name, item in written.items():
        content = {"status": item, "time": f"t{name}", "slurm": f"7_{name}"}
        content |= {"error": f"no luck {name}"} if item == "failed" else {}
        (run.path / f"status{name and '-'}{name}.json").write_text(json.dumps(content))
    result = load_run(run.path).status
    assert result.get("status") == expected
    if set(written) == {"1of2", "2of2"}:
        assert result["slurm"] == "7_1of2, 7_2of2" and result["time"] == "t2of2" and result["recorded"] == recorded
        assert result.get("error") == ("2of2: no luck 2of2" if expected == "failed" else None)
        assert result["shards"]["1of2"]["status"] == written["1of2"]


def test_a_new_division_puts_the_old_words_away_but_no_record(tmp_path: Path) -> None:
    def left() -> set[str]:
        return {file.name for file in run.path.glob("status*")}

    with pytest.raises(RuntimeError), open_all(tmp_path, (1, 2)) as run:
        run.append(record("a"))
        raise RuntimeError("boom")
    assert load_run(run.path).status["error"] == "1of2: RuntimeError: boom"
    litter = run.path / ".status.json.7.tmp"  # of a writer killed in the middle
    litter.write_text("{")
    with open_all(tmp_path, (2, 2)):
        assert left() == {"status-1of2.json", "status-2of2.json"} and litter.exists()
    with open_all(tmp_path, (3, 4)):
        assert left() == {"status-3of4.json"}
    with open_all(tmp_path, None) as run:
        assert left() == {"status.json"} and not litter.exists()
        assert run.done_ids() == {"a"}
    with open_all(tmp_path, (1, 3)):
        assert left() == {"status-1of3.json"}
    assert [sample["id"] for sample in load_run(run.path).samples] == ["a"]


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_error_of_the_run_preempts_it(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), open_all(tmp_path, (1, 2), info={"slurm": "12_3"}) as run:
        assert status(run.path, "status-1of2.json")["slurm"] == "12_3"
        run.append(record("a"))
        raise error
    result = load_run(run.path).status
    assert (result["status"], result["slurm"], result["recorded"]) == ("preempted", "12_3", 1)


def test_the_last_to_finish_sees_all(tmp_path: Path) -> None:
    """Two shards that end at the same moment: at least one of them finds the run complete."""
    code = """
        import time
        with open_run(Path(sys.argv[1]), **budgeted(sys.argv[3]), shard=(int(sys.argv[2]), 2), num_samples=2) as run:
            print("open", flush=True)
            sys.stdin.readline()
            run.append(record("x" + sys.argv[2]))
            run.finish()
    """
    for turn in range(1, 5):
        pair = [child(code, tmp_path, shard, turn) for shard in (1, 2)]
        for item in pair:
            assert item.stdout is not None and item.stdout.readline() == "open\n"
        for item in pair:
            assert item.stdin is not None
            item.stdin.write("\n")
            item.stdin.flush()
        assert [item.communicate(timeout=300)[1] for item in pair] == ["", ""]
    runs = load_runs(tmp_path)
    assert [run.status["status"] for run in runs] == ["done"] * 4
    assert all((run.path / "status.json").is_file() for run in runs)


def test_finish_counts_an_out_of_memory_row_as_a_result(tmp_path: Path) -> None:
    with open_run(tmp_path, num_samples=2) as run:
        run.append(record("a", "oom"))
        run.append(record("b"))
    with open_run(tmp_path, num_samples=2, retry=("oom",)) as run:
        assert run.done_ids() == {"b"}
        run.append(record("a", "oom"))
        assert run.finish() == "done"
    assert ids(run.path) == ["a", "b", "a"]


def test_tables_do_not_depend_on_who_recorded_what_when(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Scores whose sum depends on the order of adding, recorded in order, and shuffled by three shards."""
    shown = []
    for name in ("calm", "wild"):
        for budget, seed in (("full", 1), ("0.2", 2)):
            draw = random.Random(seed)
            run = make_run("fullkv" if budget == "full" else "snapkv", budget, 0.0, depths=list(range(100)))
            for sample in run.samples:
                value = 10 ** draw.uniform(-9, 0)
                sample |= {"scores": {"recall": value, "rouge1": value / 3}, "kept_mean": value}
            values = [sample["scores"]["recall"] for sample in run.samples]
            assert len({float(np.mean(draw.sample(values, len(values)))) for _ in range(20)}) > 1
            if name == "calm":
                store_run(tmp_path / name, run)
                continue
            manifest, samples = run.manifest, list(run.samples)
            draw.shuffle(samples)
            same = ("label", "identity", "headline", "num_samples", "device", "scoring")
            for i in (3, 1, 2):
                wild = open_run(tmp_path / name, **{key: manifest[key] for key in same}, config={}, shard=(i, 3))
                with wild:
                    for sample in samples[i - 1 :: 3]:
                        wild.append(sample)
                    wild.finish()
        present(load_runs(tmp_path / name), tmp_path / "out" / name)
        files = sorted(file for file in (tmp_path / "out" / name).rglob("*") if file.is_file())
        text = capsys.readouterr().out.replace(name, "")
        shown.append([text, *((str(f.relative_to(tmp_path / "out" / name)), f.read_bytes()) for f in files)])
    assert len(shown[0]) > 5
    assert shown[0] == shown[1]


def test_shards_that_settled_the_same_beginning(tmp_path: Path) -> None:
    """Only when all of them have: then a command with that limit finds nothing to do."""
    for shard in ((1, 2), (2, 2)):
        with open_run(tmp_path, shard=shard) as run:
            run.finish(limit=4 if shard == (1, 2) else 3)
            status = load_run(run.path).status
        assert status["status"] == "partial"
        assert status.get("limit") == (3 if shard == (2, 2) else None)


def test_of_two_answers_with_one_id_in_a_file_the_later_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    lines = [
        record("a", prediction="first"),
        record("a", "failed"),
        record("a", prediction="second"),
        record("a", "oom"),
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert merged([file])["a"]["prediction"] == "second"  # type: ignore[typeddict-item]
