"""Damaged and hostile run folders: every command names the run, skips it, and reports the others."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvbench import store
from kvbench.report.__main__ import main as report
from kvbench.run.score import main as score
from kvbench.status.__main__ import main as status
from kvbench.status.runs import look
from tests.helpers.store_runs import OPEN, budgeted, open_run, record

ODD: list[Any] = [
    None, True, 0, -1, 1, 0.0, -0.5, 1e308, 1e400, float("nan"), 10**30, "", "x", "../../x", "/etc/x", "\x1b[2J",
    "a\nb", "=1+1", "<b>", "$x$", "\ud800", [], [1], ["a"], {}, {"a": 1}, {"a": {"b": None}}, "x" * 10_000, [[]] * 50,
]  # fmt: skip
FILES = ("manifest.json", "samples.jsonl", "config.yaml", "status.json", "scores.json", "status-1of2.json", "plan")
SCORING = {"metrics": {"recall": 1, "rouge1": 1}}


@pytest.fixture(scope="module")
def cfg() -> Iterator[Any]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from kvbench import config
    from kvbench.common.paths import conf_dir

    config.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield hydra.compose("config", ["model=tiny", "method=snapkv"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, cfg: Any) -> Path:
    """A store with a run to damage (budget 1), a sound one (budget 2), the full cache, and a plan of all three."""
    root = tmp_path_factory.mktemp("sound")
    full = {
        "label": {**OPEN["label"], "method": "fullkv", "budget": "full"},
        "identity": {**OPEN["identity"], "method": {"name": "fullkv"}, "budget": None},
    }
    folders = []
    for changes in (budgeted("1"), budgeted("2"), full):
        with open_run(root / "runs", **changes, config=cfg, scoring=SCORING) as run:
            for name in ("a", "b", "c"):
                run.append(record(name, scores={"recall": 1.0, "rouge1": 0.5}, meta={"reference": "7"}))
            run.finish()
        folders.append(run.path)
    answers = store.load_run(folders[0]).answered
    store.write_scores(folders[0], {"metrics": {"recall": 0}}, {name: {"recall": 0.5} for name in "abc"}, answers)
    (folders[0] / "status-1of2.json").write_text('{"status": "partial", "time": "t", "recorded": 1}')
    store.write_plan(root, "kvbench budget=1,2", [(folder, None) for folder in folders])
    return root


@pytest.fixture
def victim(stores: Path, tmp_path: Path) -> Path:
    """The folder to damage, in a store of its own."""
    shutil.copytree(stores, tmp_path / "outputs")
    [folder] = (tmp_path / "outputs" / "runs").glob("*/*/snapkv-b1-*")
    return folder


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise RuntimeError("a command did not end")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return all paths to a value inside a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def damaged(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one part missing or replaced."""
    path = rng.choice(list(places(value)))
    if not path:
        return rng.choice(ODD)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if rng.random() < 0.25:
        del inner[path[-1]]
    else:
        inner[path[-1]] = rng.choice(ODD)
    return value


def damage(file: Path, rng: random.Random) -> None:
    """Write a damaged version of a file, one of many kinds."""
    data = file.read_bytes()
    way = rng.randrange(10)
    if way < 6 and file.suffix != ".yaml":
        lines = data.splitlines() if file.suffix == ".jsonl" else [data]
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(damaged(json.loads(lines[at]), rng)).encode()
        file.write_bytes(b"\n".join(lines) + b"\n")
    elif way == 6:
        file.write_bytes(rng.choice([b"", b"{", b"\xff\xfe" + data, data[: len(data) // 2], b"\0" * 100, data + data]))
    elif way == 7:
        opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
        file.write_bytes(opening * 10_000 + b"1" + closing * 10_000 + b"\n" + data)
    elif way == 8:
        file.unlink()
        rng.choice([os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path), lambda _: None])(file)
    else:
        position = rng.randrange(len(data) + 1)
        file.write_bytes(data[:position] + bytes(rng.randrange(256) for _ in range(8)) + data[position + 8 :])


def use_all(folder: Path, capsys: pytest.CaptureFixture, figures: bool = True) -> None:
    """Issue every command that reads the store; the sound run must be in each. Drawing `figures` takes a second."""
    outputs = folder.parents[3]
    commands: list[tuple[Callable[[list[str]], int], list[str], str]] = [
        (report, [str(outputs / "runs"), *(["--out", str(outputs / "reports")] if figures else [])], "snapkv | 2 "),
        (report, [str(outputs / "runs"), "--format", "csv"], ",snapkv,2,"),
        (report, [str(outputs / "runs"), "--format", "latex"], "snapkv"),
        (status, [str(outputs)], "snapkv-b2"),
        (status, [str(outputs), "--json"], "snapkv-b2"),
        (score, [str(outputs / "runs"), "--quiet", "--workers", "1"], "snapkv | 2 "),
    ]
    for main, arguments, shown in commands:
        code = main(arguments)
        out, err = capsys.readouterr()
        assert code in (0, 1), (arguments, err)
        assert shown in out, (arguments, out, err)
        assert "\x1b" not in out + err and "Traceback" not in err
        [sound] = (outputs / "runs").glob("needle/tiny/snapkv-b2-*")
        assert store.load_run(sound).progress.is_done
    assert sorted(path.name for path in outputs.parent.iterdir()) == ["outputs"], "nothing is written elsewhere"
    try:  # a command issued again
        with open_run(outputs / "runs", **budgeted("1"), scoring=SCORING, wait=False, retry=["oom"]) as run:
            recorded = store.load_run(folder)
            assert recorded.progress.recorded == len(run.done_ids() | {s["id"] for s in recorded.samples})
            assert store.progress(folder).is_complete(None) == recorded.progress.is_complete(None)
    except ValueError as error:
        assert str(folder) in str(error) or "paths.outputs" in str(error)
        assert "\n" not in str(error) and "\x1b" not in str(error)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", FILES)
def test_one_damaged_file_hides_no_other_run(
    victim: Path, stores: Path, name: str, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """Five damages of each file per seed: 210 in all."""
    outputs = victim.parents[3]
    for turn in range(5):
        rng = random.Random(f"{name} {seed} {turn}")
        shutil.rmtree(outputs)
        shutil.copytree(stores, outputs)
        file = next((outputs / "plans").iterdir()) if name == "plan" else victim / name
        damage(file, rng)
        try:
            use_all(victim, capsys, figures=turn == 0)
        except BaseException:
            print(f"{name}, seed {seed}, turn {turn}: {file.read_bytes()[:2000] if file.is_file() else 'no file'!r}")
            raise


def test_a_damaged_run_is_named_in_one_line(victim: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = (victim / "samples.jsonl").read_text().splitlines()
    line = json.loads(good[1])
    line["kv_bytes_full"] = 0
    (victim / "samples.jsonl").write_text("\n".join([good[0], json.dumps(line), good[2]]) + "\n")
    assert report([str(victim.parents[3])]) == 0
    [message] = caplog.messages
    assert message.startswith(f"{victim}/samples.jsonl, line 2: kv_bytes_full: 0 is not between 1 and")
    assert message.endswith("; skipped")


def test_a_line_of_many_megabytes_ends_quickly(victim: Path, capsys: pytest.CaptureFixture) -> None:
    for start in (b'{"id": "', b'{"id": "z", "x": "', b"["):
        with (victim / "samples.jsonl").open("ab") as file:
            file.write(start + b"a" * 20_000_000 + b'"}\n' + b"{}\n")
        use_all(victim, capsys)


def test_a_link_is_not_followed(victim: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "samples.jsonl", "status.json", "scores.json", "config.yaml"):
        (victim / name).rename(tmp_path / name)
        (victim / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: a symbolic link"):
            print(store.load_run(victim).config)
        (victim / name).unlink()
        (tmp_path / name).rename(victim / name)
    os.symlink(victim, victim.parent / "elsewhere")
    assert [run.path.name[:9] for run in store.load_runs(victim.parents[3])] == ["fullkv-bf", "snapkv-b1", "snapkv-b2"]


def test_a_file_without_permission_hides_no_other_run(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is simulated."""
    real = os.open

    def refuse(path: Any, *more: Any, **named: Any) -> int:
        if str(path).startswith(str(victim)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert len(store.load_runs(victim.parents[3])) == 2
    assert look(victim).state == "damaged" and "cannot be read (Permission denied)" in str(look(victim).error)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "a: !!python/object/apply:os.system ['touch {mark}']",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "[" * 5_000,
        "a: " + "{a: " * 5_000,
        "- no mapping",
        "a: b: c",
    ],
)
def test_config_files_are_plain_data_within_limits(victim: Path, text: str, capsys: pytest.CaptureFixture) -> None:
    mark = victim / "mark"
    (victim / "config.yaml").write_text(text.replace("{mark}", str(mark)))
    with pytest.raises(ValueError, match=r"config\.yaml: .*; delete it, the run goes on without it"):
        print(store.load_run(victim).config)
    use_all(victim, capsys)
    assert not mark.exists()


def test_a_copy_counts_once(victim: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    copy = victim.with_name("copy of it")
    shutil.copytree(victim, copy)
    runs = store.load_runs(victim.parents[3])
    assert victim in [run.path for run in runs] and len(runs) == 3
    assert caplog.messages == [f"{copy}: a copy of the run in {victim}; skipped"]
    status([str(victim.parents[3])])
    assert f"Skipped: {copy}: a copy of the run in {victim}" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["method", "budget", "model", "benchmark"])
def test_a_label_cannot_leave_its_folder_or_lie(victim: Path, key: str, capsys: pytest.CaptureFixture) -> None:
    content = json.loads((victim / "manifest.json").read_text())
    for value in ("../../../x", "/tmp/x", "..", "a/b", "", "x\x1b[2J"):
        content["label"][key] = value
        (victim / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"label.{key}: "):
            store.load_run(victim)
        use_all(victim, capsys)
    if key in ("method", "budget"):
        content["label"][key] = "64"
        (victim / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"label.{key} says 64, the identity says"):
            store.load_run(victim)
    content = json.loads((victim / "manifest.json").read_text())
    content["identity"]["seed"] = 5
    content["label"][key] = OPEN["label"][key] if key != "budget" else "1"
    (victim / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the hash is not that of the identity"):
        store.load_run(victim)
