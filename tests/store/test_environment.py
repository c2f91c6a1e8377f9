"""Versions and hardware of a run: what it goes on with is in its manifest, whoever goes on and however it ends."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from kvbench.status.runs import look
from kvbench.store import load_manifests, load_numbers, load_run, load_runs, write_scores
from kvbench.store.environment import changes, environments, hardware_of, is_mixed
from tests.helpers.store_runs import OPEN, child, open_run, record

A, B = {"name": "GPU A", "gpus": 1}, {"name": "GPU B", "gpus": 1}
NEW = {"kvbench": "0.2.0"}


def manifest(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return content


def begun(root: Path, *names: str, **changed: Any) -> Path:
    """Record samples and return the folder."""
    with open_run(root, **changed) as run:
        for name in names:
            run.append(record(name))
        run.set_status("partial")
    return run.path


def test_a_run_that_goes_on_with_other_versions_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = begun(tmp_path, "a", hardware=A)
    before = (path / "manifest.json").read_bytes()
    assert begun(tmp_path, "b", hardware=A) == path and not caplog.messages
    assert (path / "manifest.json").read_bytes() == before, "nothing has changed"

    begun(tmp_path, hardware=A, versions=NEW)
    assert "2 sample(s) were recorded with something else (kvbench 0.1.0 → 0.2.0)" in caplog.text
    assert "move the folder away or choose another paths.outputs" in caplog.text
    assert (path / "manifest.json").read_bytes() == before, "nothing was recorded with it"

    begun(tmp_path, "c", hardware=B, versions=NEW)
    run = load_run(path)
    (more,) = run.manifest["continued_with"]
    assert (more["recorded"], more["versions"], more["hardware"]["name"]) == (2, NEW, "GPU B") and more["time"]
    assert json.loads(before) == {key: value for key, value in manifest(path).items() if key != "continued_with"}
    assert [sample["hardware"] for sample in run.samples] == ["GPU A", "GPU A", "GPU B"]
    assert is_mixed([run.manifest]) and hardware_of([run.manifest]) == ["GPU A", "GPU B"]
    assert changes(*environments(run.manifest)) == ["kvbench 0.1.0 → 0.2.0", "hardware GPU A → GPU B"]


def test_versions_that_are_listed_are_not_listed_again(tmp_path: Path) -> None:
    path = begun(tmp_path, "a")
    for name, versions in (("b", NEW), ("c", OPEN["versions"]), ("d", NEW), ("e", {"kvbench": "0.3.0"})):
        begun(tmp_path, name, versions=versions, num_samples=9)
    listed = [(more["recorded"], more["versions"]["kvbench"]) for more in manifest(path)["continued_with"]]
    assert listed == [(1, "0.2.0"), (4, "0.3.0")]


def test_a_run_without_samples_has_no_past(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = begun(tmp_path, hardware=A)
    begun(tmp_path, "a", hardware=B, versions=NEW)
    assert manifest(path)["versions"] == NEW and manifest(path)["hardware"] == B
    assert "continued_with" not in manifest(path) and not caplog.messages


def test_both_shards_of_a_run_list_their_versions(tmp_path: Path) -> None:
    """Also when both have opened the folder before either has recorded anything."""
    old = open_run(tmp_path, shard=(1, 2), hardware=A)
    new = open_run(tmp_path, shard=(2, 2), hardware=B, versions=NEW)
    with old, new:
        old.append(record("a"))
        new.append(record("b"))
        old.append(record("c"))
    stored = load_run(old.path)
    assert {each["versions"]["kvbench"] for each in environments(stored.manifest)} == {"0.1.0", "0.2.0"}
    assert hardware_of([stored.manifest]) == ["GPU A", "GPU B"]


def test_no_kill_leaves_a_record_without_its_versions(tmp_path: Path) -> None:
    path = begun(tmp_path, "a", num_samples=1000)
    writer = child(
        """
        with open_run(Path(sys.argv[1]), versions={"kvbench": "0.2.0"}, num_samples=1000) as run:
            for number in range(500):
                run.append(record(f"b{number}"))
                print(number, flush=True)
        """,
        tmp_path,
    )
    assert writer.stdout is not None and writer.stdout.readline() == "0\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    stored = load_run(path)
    assert len(stored.samples) > 1 and stored.manifest["continued_with"][0]["recorded"] == 1
    begun(tmp_path, "z", versions=NEW, num_samples=1000)
    assert len(manifest(path)["continued_with"]) == 1


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = begun(tmp_path, "a")
    assert "hardware" not in manifest(path)
    begun(tmp_path, "b", hardware=A)
    stored = load_run(path)
    assert not is_mixed([stored.manifest]) and hardware_of([stored.manifest]) == ["GPU A"]
    assert stored.manifest["continued_with"][0]["recorded"] == 1 and not caplog.messages


@pytest.mark.parametrize("value", [7, [7], [{"versions": {}}], [{"versions": {}, "device": "cpu", "recorded": -1}]])
def test_a_damaged_list_is_refused(value: object, tmp_path: Path) -> None:
    path = begun(tmp_path, "a")
    (path / "manifest.json").write_text(json.dumps(manifest(path) | {"continued_with": value}))
    with pytest.raises(ValueError, match=r"manifest\.json: continued_with.*; move the folder away"):
        load_run(path)


# ---- the same run in two places ----------------------------------------------------------------------------


def test_the_same_run_on_another_kind_of_device_is_no_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = {begun(tmp_path / device, "a", device=device) for device in ("cpu", "cuda")}
    assert {run.path for run in load_runs(tmp_path)} == paths and not caplog.messages
    assert {run.path for run in load_numbers(tmp_path)} == paths


def test_a_run_computed_twice_counts_once_and_is_called_no_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(tmp_path / "one", "a", "b", device="cuda:0")
    monkeypatch.setattr("kvbench.common.clock.now", lambda: "2027-01-01T00:00:00Z")
    second = begun(tmp_path / "two", "a", device="cuda:1", hardware=B)
    assert list(load_manifests(tmp_path)) == [first]
    assert caplog.messages == [
        f"{second}: the run in {first} computed again, of which tables show one; name this folder alone to see it; "
        "skipped"
    ]
    caplog.clear()
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert list(load_manifests(tmp_path)) == [first] and "a copy of the run in" in caplog.text


# ---- scores of several rules -----------------------------------------------------------------------------


@pytest.mark.parametrize("read", [load_runs, load_numbers])
def test_scores_of_two_rules_are_not_read_as_one(read: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rule changed in mid-run, and the scores that were given again are gone."""
    rules: list[dict[str, object]] = [{"metrics": {"recall": version}} for version in (1, 2)]
    with open_run(tmp_path, scoring=rules[0]) as run:
        run.append(record("a", scoring=rules[0]))
        assert len(read(tmp_path)) == 1 and not caplog.messages
        run.append(record("b", scoring=rules[1]))
    assert read(tmp_path) == []
    assert (
        f"1 answer(s) were scored by another rule than the others; to score all again: kvbench score {run.path}"
        in caplog.text
    )
    assert load_run(run.path, any_scoring=True).scored_otherwise == 1

    again = {"scoring": rules[1], "scores": {"a": {"recall": 0.5}}}
    (run.path / "scores.json").write_text(json.dumps(again))
    (stored,) = read(tmp_path)
    assert stored.manifest["scoring"] == rules[1]


def test_new_scores_stay_with_the_samples_that_they_are_of(tmp_path: Path) -> None:
    """A sample that is lost and computed again keeps the score of its new answer, also under an unchanged rule."""
    rule = {"metrics": {"recall": 1}}
    with open_run(tmp_path, scoring=rule) as run:
        for name in "ab":
            run.append(record(name, scoring=rule, scores={"recall": 1.0}, time="2026-01-01T00:00:00Z"))
    write_scores(run.path, rule, {"a": {"recall": 0.75}, "b": {"recall": 0.75}}, load_run(run.path).answered)
    file = run.path / "samples.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    with open_run(tmp_path, scoring=rule) as run:
        run.append(record("b", scoring=rule, scores={"recall": 0.0}, time="2026-01-02T00:00:00Z"))
    for bulky in (True, False):
        assert [answer["scores"]["recall"] for answer in load_run(run.path, bulky).answered] == [0.75, 0.0]


# ---- files of two machines in one folder -------------------------------------------------------------------


def mixed_by_hand(root: Path, **other: Any) -> Path:
    """Return a run whose second shard was copied from another machine, without its manifest."""
    with open_run(root, shard=(1, 2), hardware=A) as run:
        run.append(record("a", device="cpu"))
    with open_run(root / "other", shard=(2, 2), **other) as second:
        second.append(record("b", device=other.get("device", "cpu")))
    for file in second.path.glob("*-2of2.json*"):
        shutil.copy(file, run.path)
    return run.path


@pytest.mark.parametrize("read", [load_runs, load_numbers])
def test_records_of_another_machine_mark_the_run(read: Any, tmp_path: Path) -> None:
    path = mixed_by_hand(tmp_path, hardware=B)
    (run,) = read(path)
    assert is_mixed([run.manifest]) and hardware_of([run.manifest]) == ["GPU A", "GPU B"]
    assert changes(*environments(run.manifest)) == ["hardware GPU A → GPU B"]
    assert run.manifest["continued_with"][0]["recorded"] == 1
    assert "other versions or hardware after 1 samples" in (look(path).note or "")


@pytest.mark.parametrize("read", [load_runs, load_numbers])
def test_records_of_another_kind_of_device_are_damage(
    read: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = mixed_by_hand(tmp_path, device="cuda:0", hardware=A)
    assert read(path) == []
    assert "1 sample(s) were computed on cuda, the run on cpu, so files of two runs are mixed; move" in caplog.text
    assert look(path).state == "damaged"


def test_a_cell_that_is_called_device_is_no_device(tmp_path: Path) -> None:
    with open_run(tmp_path, hardware=A) as run:
        run.append(record("a", meta={"device": "toaster", "hardware": "of a kitchen"}, device="cpu"))
    assert not is_mixed([each.manifest for each in load_numbers(tmp_path)])
    assert look(run.path).note == "no process holds it: killed, or its disk was full"
