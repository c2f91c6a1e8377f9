"""The store: identity, secrets, the run folder and its status."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvbench.store import identity_hash, iterate_runs, load_run, load_runs, scrub
from tests.helpers.store_runs import OPEN, budgeted, child, ids, open_run, record

# ---- identity


def test_hash_is_sha256_of_canonical_json() -> None:
    identity = {"seed": 0, "budget": 0.2, "method": {"window": 32, "parts": ("a", "b"), "floor": None}}
    canonical = '{"budget":0.2,"method":{"floor":null,"parts":["a","b"],"window":32},"seed":0}'
    assert identity_hash(identity) == hashlib.sha256(canonical.encode()).hexdigest()
    assert identity_hash({"budget": 128}) == "bb3f7c3aace8d889654d1914b81aad4c05f072f100ee6eaca22d34c831b498b2"


def test_hash_tells_int_float_bool_and_text_apart() -> None:
    values: list[Any] = [1, 1.0, True, "1", None, [1], {"a": 1}]
    assert len({identity_hash({"budget": value}) for value in values}) == len(values)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(leaves, lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.text(), kids, max_size=4))


def reverse_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reverse_keys(value[key]) for key in reversed(value)}
    return [reverse_keys(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), trees, max_size=4))
def test_hash_survives_key_order_and_a_json_round_trip(identity: dict[str, Any]) -> None:
    assert identity_hash(reverse_keys(identity)) == identity_hash(identity)
    assert identity_hash(json.loads(json.dumps(identity))) == identity_hash(identity)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"parts": [1, {2}]}, "identity.parts[1]: set is not a JSON type"),
        ({"x": float("nan")}, "identity.x: nan is not a JSON number"),
        ({"x": {1: 2}}, "identity.x: the key 1 is not a string"),
        ({"path": Path("a")}, "identity.path: PosixPath is not a JSON type"),
    ],
)
def test_hash_refuses_what_json_cannot_hold(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        identity_hash(value)
    assert str(error.value) == message


# ---- secrets


def test_secrets_never_reach_the_disk(tmp_path: Path) -> None:
    config = {
        "logger": {
            "api_key": "S3CRET",
            "wandbApiKey": "S3CRET",
            "url": "https://me:S3CRET@host/x",
            "entity": "us",
        },
        "hf_token": "S3CRET",
        "nested": [{"password": "S3CRET"}, "logger.api_key=S3CRET", "budget=0.2"],
        "max_new_tokens": 32,
        "sink_tokens": 4,
        "tokenizer": "smollm2",
        "eos_token": "<end>",
        "token": None,
    }
    run = open_run(tmp_path, config=OmegaConf.create(config))
    run.close()
    written = b"".join(file.read_bytes() for file in run.path.iterdir() if file.is_file())
    assert b"S3CRET" not in written
    assert load_run(run.path).config == {
        "logger": {"url": "https://host/x", "entity": "us"},
        "nested": [{}, "budget=0.2"],
        "max_new_tokens": 32,
        "sink_tokens": 4,
        "tokenizer": "smollm2",
        "eos_token": "<end>",
        "token": None,
    }
    assert scrub(config)["nested"] == [{}, "budget=0.2"] and config["hf_token"] == "S3CRET"


# ---- the folder


def test_folder_files_and_round_trip(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        digest = identity_hash(OPEN["identity"])
        assert run.path == tmp_path / "needle" / "tiny" / f"snapkv-b0.2-{digest[:8]}"
        assert load_run(run.path).status["status"] == "running"
        run.append(record("a", scores={"recall": 1.0}))
        run.append(record("b", "oom"))
        assert run.done_ids() == {"a", "b"}
        run.set_status("done", seconds=1.5)
    stored = load_run(run.path)
    assert [sample["id"] for sample in stored.samples] == ["a", "b"]
    assert stored.samples[0] == record("a", scores={"recall": 1.0})
    assert stored.status["status"] == "done" and stored.status["recorded"] == 2
    assert stored.status["seconds"] == 1.5
    assert stored.manifest["hash"] == digest and stored.manifest["identity"] == OPEN["identity"]
    assert {key: stored.manifest[key] for key in ("label", "headline", "num_samples", "versions", "device")} == {
        key: OPEN[key] for key in ("label", "headline", "num_samples", "versions", "device")
    }
    assert stored.manifest["schema"] == 1 and stored.manifest["created"].endswith("Z")


def test_reopening_keeps_config_and_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    run.close()
    before = {name: (run.path / name).read_bytes() for name in ("config.yaml", "manifest.json")}
    again = open_run(tmp_path, config={"budget": 0.2, "batch": 4}, versions={"kvbench": "0.2.0"}, device="cuda")
    assert again.path == run.path and again.done_ids() == {"a"}
    assert before == {name: (run.path / name).read_bytes() for name in before}
    assert "1 sample(s) were recorded with something else (kvbench 0.1.0 → 0.2.0, device cpu → cuda)" in caplog.text
    with pytest.raises(ValueError, match="the sample a is already recorded"):
        again.append(record("a"))
    again.close()
    assert ids(run.path) == ["a"]


def test_a_done_run_stays_done_when_it_is_opened_again(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        for name in ("a", "b", "c"):
            run.append(record(name))
        run.finish()
    with open_run(tmp_path):
        assert load_run(run.path).status["status"] == "done"
    assert load_run(run.path).status["status"] == "done"
    (run.path / "samples.jsonl").write_text("")  # but not when its samples are gone
    with open_run(tmp_path):
        assert load_run(run.path).status["status"] == "running"


def test_oom_rows_are_retried_only_on_request_and_the_latest_row_counts(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.append(record("a", "oom"))
        run.append(record("b"))
    with open_run(tmp_path) as run:
        assert run.done_ids() == {"a", "b"}
        with pytest.raises(ValueError, match="already recorded"):
            run.append(record("a"))
    with open_run(tmp_path, retry=("oom",)) as run:
        assert run.done_ids() == {"b"}
        run.append(record("a"))
        assert run.done_ids() == {"a", "b"}
    assert {sample["id"]: sample["status"] for sample in load_run(run.path).samples} == {"a": "ok", "b": "ok"}
    with open_run(tmp_path, retry=("oom",)) as run:
        assert run.done_ids() == {"a", "b"}


def test_a_hash_collision_is_refused(tmp_path: Path) -> None:
    run, other = open_run(tmp_path), open_run(tmp_path / "other", identity={**OPEN["identity"], "seed": 1})
    for opened in (run, other):
        opened.close()
    shutil.copy(other.path / "manifest.json", run.path)
    with pytest.raises(ValueError, match=r"holds another run, whose hash begins alike; choose another paths\.outputs"):
        open_run(tmp_path)


def test_samples_without_a_manifest_are_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    run.close()
    (run.path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has samples but no manifest\.json"):
        open_run(tmp_path)


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b"])
def test_labels_must_be_folder_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="label model="):
        open_run(tmp_path, label={**OPEN["label"], "model": name})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["file/below", "/proc/kvbench"])
def test_a_root_that_cannot_be_written_names_the_override(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError) as error:
        open_run(tmp_path / where)
    assert str(error.value).startswith(f"paths.outputs: cannot write {tmp_path / where}")
    assert "\n" not in str(error.value)


def test_load_runs_filters_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_runs(tmp_path / "none") == []
    open_run(tmp_path).close()
    open_run(tmp_path, label={**OPEN["label"], "benchmark": "ruler"}).close()
    lost = tmp_path / "needle" / "tiny" / "lost"
    lost.mkdir()
    (lost / "samples.jsonl").write_text("")
    damaged = open_run(tmp_path, label={**OPEN["label"], "benchmark": "damaged"})
    damaged.close()
    (damaged.path / "manifest.json").write_text("{}")
    (tmp_path / ".groups" / "g0" / "job").mkdir(parents=True)
    assert [run.manifest["label"]["benchmark"] for run in load_runs(tmp_path)] == ["needle", "ruler"]
    assert caplog.messages == [
        f"{lost}: no manifest.json; skipped",
        f"{damaged.path}/manifest.json: schema is missing; move the folder away to compute the run again; skipped",
    ]
    assert [run.path for run in load_runs(lost.parent)] == [run.path for run in load_runs(tmp_path, "needle")]
    assert [run.manifest["label"]["benchmark"] for run in load_runs(tmp_path, "ruler")] == ["ruler"]


# ---- status


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RuntimeError("boom"), "failed", "RuntimeError: boom"),
        (KeyboardInterrupt(), "preempted", "KeyboardInterrupt: "),
    ],
)
def test_an_exception_sets_the_status(tmp_path: Path, error: BaseException, status: str, text: str) -> None:
    with pytest.raises(type(error)), open_run(tmp_path) as run:
        run.append(record("a"))
        raise error
    stored = load_run(run.path).status
    assert (stored["status"], stored["error"], stored["recorded"]) == (status, text, 1)
    open_run(tmp_path, wait=False).close()  # the lock is free again
    assert load_run(run.path).status["status"] == "running"


def test_a_final_status_set_by_the_caller_stands(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_run(tmp_path) as run:
        run.set_status("preempted", signal="USR2")
        raise RuntimeError
    assert load_run(run.path).status["signal"] == "USR2"
    with pytest.raises(ValueError, match="one of running, done, partial, failed, preempted"):
        run.set_status("finished")


def test_status_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path)
    before = (run.path / "status.json").read_bytes()

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        run.set_status("done")
    assert (run.path / "status.json").read_bytes() == before
    assert not list(run.path.glob("*.tmp")) and not list(run.path.glob(".*.tmp"))
    run.close()


def test_readers_never_see_half_a_status(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.close()
    writer = child(
        """
        run = open_run(Path(sys.argv[1]))
        print("open", flush=True)
        i = 0
        while True:
            run.set_status("running", filler="x" * 10 * (i % 300))
            i += 1
        """,
        tmp_path,
    )
    assert writer.stdout is not None and writer.stdout.readline() == "open\n"
    fillers = set()
    deadline = time.monotonic() + 60
    while len(fillers) < 20 and time.monotonic() < deadline:
        status = load_run(run.path).status
        assert status["status"] == "running"
        fillers.add(status.get("filler"))
    writer.kill()
    writer.communicate()
    assert len(fillers) == 20  # the readings above did fall between different writes


def test_runs_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that goes through a store of any size holds the records of one run."""
    for budget in ("10", "20", "30"):
        with open_run(tmp_path, **budgeted(budget)) as run:
            run.append(record("a"))
    read: list[Path] = []
    monkeypatch.setattr("kvbench.store.read.load_run", lambda path, bulky: read.append(path) or load_run(path, bulky))
    runs = iterate_runs(tmp_path)
    assert next(runs).manifest["label"]["budget"] == "10" and len(read) == 1
    assert [run.manifest["label"]["budget"] for run in runs] == ["20", "30"]


def test_too_many_open_files_are_no_fault_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, most, opened = os.open, 0, 0

    def limited(*arguments: Any, **more: Any) -> int:
        nonlocal opened
        opened += 1
        if opened > most:
            raise OSError(errno.EMFILE, "Too many open files", str(arguments[0]))
        return real(*arguments, **more)

    with open_run(tmp_path) as run:
        run.append(record("a"))
    monkeypatch.setattr(os, "open", limited)
    while True:
        most, opened = most + 1, 0
        try:
            open_run(tmp_path).close()
        except ValueError as error:
            assert str(error).startswith("too many open files: ") and "ulimit -n" in str(error)
            assert "\n" not in str(error)
        else:
            break
    assert most > 3, "a run was refused at each file that it opens, and then it was not"
