"""The store: identity, secrets, and that no crash loses or doubles a sample."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvbench.store import Run, identity_hash, load_run, load_runs, scrub

OPEN: dict[str, Any] = {
    "label": {"benchmark": "needle", "model": "tiny", "method": "snapkv", "budget": "0.2"},
    "identity": {"method": {"name": "snapkv"}, "budget": 0.2, "seed": 0},
    "config": {"budget": 0.2},
    "headline": "recall",
    "num_samples": 3,
    "versions": {"kvbench": "0.1.0"},
    "device": "cpu",
}


def open_run(root: Path, **changes: Any) -> Run:
    return Run.open(root, **{**OPEN, **changes})


def record(name: str, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {"id": name, "status": status, "prediction": "Zahl 7 \u2028 \u4e2d\ud800", **more}


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (path / "samples.jsonl").read_bytes().splitlines()]


def child(code: str, *arguments: Any) -> subprocess.Popen[str]:
    """Start Python with this module's helpers and `code`; stdout and stderr are piped."""
    prelude = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_store import open_run, record
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- identity


def test_hash_is_sha256_of_canonical_json() -> None:
    identity = {"seed": 0, "budget": 0.2, "method": {"window": 32, "parts": ("a", "b"), "floor": None}}
    canonical = '{"budget":0.2,"method":{"floor":null,"parts":["a","b"],"window":32},"seed":0}'
    assert identity_hash(identity) == hashlib.sha256(canonical.encode()).hexdigest()
    assert (
        identity_hash({"budget": 128}) == "bb3f7c3aace8d889654d1914b81aad4c05f072f100ee6eaca22d34c831b498b2"
    )


def test_hash_tells_int_float_bool_and_text_apart() -> None:
    values: list[Any] = [1, 1.0, True, "1", None, [1], {"a": 1}]
    assert len({identity_hash({"budget": value}) for value in values}) == len(values)


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
trees = st.recursive(
    leaves, lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.text(), kids, max_size=4)
)


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
    assert {
        key: stored.manifest[key] for key in ("label", "headline", "num_samples", "versions", "device")
    } == {key: OPEN[key] for key in ("label", "headline", "num_samples", "versions", "device")}
    assert stored.manifest["schema"] == 1 and stored.manifest["created"].endswith("Z")


def test_reopening_keeps_config_and_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    run.close()
    before = {name: (run.path / name).read_bytes() for name in ("config.yaml", "manifest.json")}
    again = open_run(
        tmp_path, config={"budget": 0.2, "batch": 4}, versions={"kvbench": "0.2.0"}, device="cuda"
    )
    assert again.path == run.path and again.done_ids() == {"a"}
    assert before == {name: (run.path / name).read_bytes() for name in before}
    assert "begun with versions {'kvbench': '0.1.0'}" in caplog.text
    with pytest.raises(ValueError, match="the sample a is already recorded"):
        again.append(record("a"))
    again.close()
    assert ids(run.path) == ["a"]


def test_a_done_run_stays_done_when_it_is_opened_again(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.set_status("done")
    with open_run(tmp_path):
        assert load_run(run.path).status["status"] == "done"
    assert load_run(run.path).status["status"] == "done"


def test_oom_rows_are_retried_only_on_request_and_the_latest_row_counts(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.append(record("a", "oom"))
        run.append(record("b"))
    with open_run(tmp_path) as run:
        assert run.done_ids() == {"a", "b"}
        with pytest.raises(ValueError, match="already recorded"):
            run.append(record("a"))
    with open_run(tmp_path, retry_oom=True) as run:
        assert run.done_ids() == {"b"}
        run.append(record("a"))
        assert run.done_ids() == {"a", "b"}
    assert {sample["id"]: sample["status"] for sample in load_run(run.path).samples} == {"a": "ok", "b": "ok"}
    with open_run(tmp_path, retry_oom=True) as run:
        assert run.done_ids() == {"a", "b"}


def test_a_hash_collision_is_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.close()
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["hash"] = manifest["hash"][:8] + "0" * 56
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"holds a run whose hash only begins alike; choose another paths\.outputs"
    ):
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
    assert str(error.value).startswith(f"paths.outputs={tmp_path / where}: cannot write there (")
    assert "\n" not in str(error.value)


def test_load_runs_filters_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_runs(tmp_path / "none") == []
    open_run(tmp_path).close()
    open_run(tmp_path, label={**OPEN["label"], "benchmark": "ruler"}).close()
    (tmp_path / "needle" / "tiny" / "empty").mkdir()
    (tmp_path / ".groups" / "g0" / "job").mkdir(parents=True)
    assert [run.manifest["label"]["benchmark"] for run in load_runs(tmp_path)] == ["needle", "ruler"]
    assert caplog.messages == [f"{tmp_path}/needle/tiny/empty: no manifest.json; passed over"]
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
    with pytest.raises(ValueError, match="one of running, done, failed, preempted"):
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


# ---- torn lines


def test_every_cut_of_the_file_loses_only_the_torn_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(tmp_path)
    for name in ("a", "b", "c"):
        run.append({"id": name, "status": "ok"})
    run.close()
    file = run.path / "samples.jsonl"
    whole = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        caplog.clear()
        file.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert [sample["id"] for sample in load_run(run.path).samples] == ["a", "b", "c"][:kept]
        assert file.read_bytes() == whole[:cut]  # reading changes nothing
        with open_run(tmp_path) as again:
            assert again.done_ids() == set("abc"[:kept])
            assert file.read_bytes() == whole[: ([0, *ends])[kept]]
            assert ("dropped a torn last line" in caplog.text) == (cut not in (0, *ends))
            for name in "abc"[kept:]:
                again.append({"id": name, "status": "ok"})
        assert file.read_bytes() == whole


def test_a_last_line_of_rubbish_is_torn_but_not_one_in_the_middle(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    run.close()
    file = run.path / "samples.jsonl"
    good = file.read_bytes()
    file.write_bytes(good + b'{"id": "b", "st\0\0\n')
    with open_run(tmp_path) as again:
        assert again.done_ids() == {"a"} and file.read_bytes() == good
    for bad in (b"{rubbish\n" + good, good + b"\n" + good, good + b"{rubbish\n{unfinished"):
        file.write_bytes(bad)
        number = 1 if bad.startswith(b"{r") else 2
        for use in (lambda: open_run(tmp_path), lambda: load_run(run.path)):
            with pytest.raises(ValueError, match=rf"samples\.jsonl, line {number}: not valid JSON"):
                use()
        assert file.read_bytes() == bad
    file.write_bytes(good + b"[1]\n")
    with pytest.raises(ValueError, match="line 2: not a record with an id"):
        open_run(tmp_path, wait=False)  # the failed openings above released the lock


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"status": "ok"}, "needs an id"),
        ({"id": "a"}, "the status ok or oom"),
        ({"id": "a", "status": "ok", "scores": {"recall": float("nan")}}, r"a\.scores\.recall: nan"),
    ],
)
def test_a_record_that_cannot_be_stored_leaves_no_trace(tmp_path: Path, bad: dict, message: str) -> None:
    with open_run(tmp_path) as run:
        with pytest.raises(ValueError, match=message):
            run.append(bad)
        assert (run.path / "samples.jsonl").read_bytes() == b""
        run.append(record("a"))
    with pytest.raises(ValueError, match="the run is closed"):
        run.append(record("b"))


# ---- crashes


def test_killed_again_and_again_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """SIGKILL a writer at ten moments; every id whose append returned must be on file, once."""
    code = """
        with open_run(Path(sys.argv[1])) as run:
            done = run.done_ids()
            for i in range(int(sys.argv[2])):
                if f"s{i}" not in done:
                    run.append(record(f"s{i}", filler="x" * (i % 7) * 10_000))
                    print(f"s{i}", flush=True)
            run.set_status("done")
    """
    returned: set[str] = set()
    for attempt in range(10):
        writer = child(code, tmp_path, 1_000_000)  # more than it will ever write
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(1 + 3 * attempt)]
        time.sleep(0.001 * attempt)
        writer.kill()
        rest, errors = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, errors
        returned |= {line.strip() for line in [*lines, *rest.splitlines(True)] if line.endswith("\n")}
        [path] = (tmp_path / "needle" / "tiny").iterdir()
        assert returned <= {sample["id"] for sample in load_run(path).samples}
    assert len(returned) >= sum(1 + 3 * attempt for attempt in range(10))
    total = len(load_run(path).samples) + 20
    finisher = child(code, tmp_path, total)
    output, errors = finisher.communicate(timeout=120)
    assert finisher.returncode == 0, errors
    assert output.split() == [f"s{i}" for i in range(total - 20, total)]
    assert ids(path) == [f"s{i}" for i in range(total)]
    assert load_run(path).status["status"] == "done"


def test_two_processes_share_the_work_of_one_run(tmp_path: Path) -> None:
    code = """
        import logging
        logging.basicConfig(format="%(message)s")
        with open_run(Path(sys.argv[1])) as run:
            for i in range(20):
                if f"s{i}" not in run.done_ids():
                    run.append(record(f"s{i}"))
            run.set_status("done")
    """
    held = open_run(tmp_path)
    with pytest.raises(ValueError, match="another process is writing this run") as error:
        open_run(tmp_path, wait=False)
    assert str(held.path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="this process is already writing this run"):
        open_run(tmp_path)
    writers = [child(code, tmp_path) for _ in range(2)]
    for writer in writers:
        assert writer.stderr is not None
        assert writer.stderr.readline() == f"waiting for another process that is writing {held.path}\n"
    held.append(record("s3"))
    held.close()
    outputs = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    assert sorted(ids(held.path)) == sorted(f"s{i}" for i in range(20))


def test_a_timeout_ends_the_wait(tmp_path: Path) -> None:
    holder = child(
        """
        run = open_run(Path(sys.argv[1]))
        print("open", flush=True)

        import time
        time.sleep(60)
        """,
        tmp_path,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "open\n"
    with pytest.raises(ValueError, match=r"still writes this run after 0\.2 s"):
        open_run(tmp_path, timeout=0.2)
    holder.kill()
    holder.communicate()
    open_run(tmp_path, timeout=5).close()  # a dead process holds no lock


def test_a_full_disk_keeps_whole_lines_and_names_the_folder(tmp_path: Path) -> None:
    """A file size limit takes a part of a line and refuses the remainder, as a full disk does."""
    writer = child(
        """
        import resource
        run = open_run(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        for i in range(10):
            try:
                run.append(record(f"s{i}", filler="x" * 900))
            except OSError as error:
                print(i, error)
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run.append(record("small"))  # space was made: the same process may go on
        """,
        tmp_path,
    )
    output, errors = writer.communicate(timeout=60)
    assert writer.returncode == 0, errors
    [path] = (tmp_path / "needle" / "tiny").iterdir()
    assert output == f"4 [Errno 27] {path}: cannot write the sample s4 (File too large)\n"
    assert ids(path) == ["s0", "s1", "s2", "s3", "small"]


def test_when_the_torn_line_cannot_be_cut_the_run_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    whole = (run.path / "samples.jsonl").read_bytes()
    write, parts = os.write, []

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    def write_part(fd: int, data: bytes) -> int:
        if parts:
            fail()
        parts.append(data[:10])
        return write(fd, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        patch.setattr(os, "write", write_part)
        with pytest.raises(OSError, match="cannot write the sample b"):
            run.append(record("b"))
    assert (run.path / "samples.jsonl").read_bytes() == whole + parts[0]
    assert "could not cut off a torn last line" in caplog.text
    with pytest.raises(ValueError, match="the run is closed"):
        run.append(record("c"))
    run.close()
    with caplog.at_level(logging.WARNING), open_run(tmp_path) as again:
        assert again.done_ids() == {"a"} and (run.path / "samples.jsonl").read_bytes() == whole


def test_an_interrupt_in_the_middle_of_a_line_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as run:
        run.append(record("a"))
        whole = (run.path / "samples.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            run.append(record("b"))
    assert (run.path / "samples.jsonl").read_bytes() == whole
    assert yaml.safe_load((run.path / "status.json").read_text())["status"] == "preempted"
