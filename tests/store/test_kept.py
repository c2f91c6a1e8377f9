"""The side file of kept tokens: it reads back, survives a torn line, and damage is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvbench import store
from kvbench.store.kept import kept_line
from tests.helpers.fake_runs import make_run


def drawn(name: str, seed: int = 0, tokens: int = 13) -> store.KeptTokens:
    mask_LUT = np.random.default_rng(seed).random((3, 2, tokens)) < 0.4
    return store.KeptTokens(name, [f"w{place}\n" for place in range(tokens)], mask_LUT)


def test_kept_tokens_read_back_from_all_shards(tmp_path: Path) -> None:
    first, second, again = drawn("a"), drawn("b", 1, 64), drawn("a", 2)
    (tmp_path / "kept-1of2.jsonl").write_bytes(kept_line(first) + kept_line(again) + b'{"id": "torn')
    (tmp_path / "kept-2of2.jsonl").write_bytes(kept_line(second))
    (tmp_path / "kept-old.jsonl").write_text("not ours")
    kept = store.read_kept(tmp_path)
    assert list(kept) == ["a", "b"] and store.kept_ids(tmp_path) == {"a", "b"}
    assert np.array_equal(kept["a"].mask_LUT, again.mask_LUT), "the later line counts"
    assert np.array_equal(kept["b"].mask_LUT, second.mask_LUT) and kept["b"].tokens == second.tokens
    assert list(store.read_kept(tmp_path, ["b", "c"])) == ["b"] and store.read_kept(tmp_path / "none") == {}


def test_a_writer_adds_kept_tokens_to_its_run(tmp_path: Path) -> None:
    run = make_run("snapkv", "0.2", 1.0)
    manifest = run.manifest
    for number in range(2):  # the second opening continues the files
        with store.Run.open(
            tmp_path, label=manifest["label"], identity=manifest["identity"], config={}, versions={},
            headline="recall", num_samples=manifest["num_samples"], device="cpu",
        ) as writer:  # fmt: skip
            if number:
                with (writer.path / "kept.jsonl").open("ab") as file:
                    file.write(b'{"id": "torn')
            writer.append_kept(drawn(run.samples[number]["id"], number))
            writer.append(run.samples[number])
    assert sorted(store.read_kept(writer.path)) == sorted(sample["id"] for sample in run.samples[:2])
    assert len(store.load_run(writer.path).samples) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"shape":[3,2,13]', b'"shape":[3,2,14]'), (b'"shape":[3,2', b'"shape":[300,2'), (b'"kept":"', b'"kept":"AAAA')],
)
def test_damage_is_one_line_that_names_the_place(tmp_path: Path, old: bytes, new: bytes) -> None:
    (tmp_path / "kept.jsonl").write_bytes(kept_line(drawn("a")).replace(old, new) + kept_line(drawn("b")))
    with pytest.raises(ValueError, match=r"kept\.jsonl|kept tokens of 'a'") as error:
        store.read_kept(tmp_path)
    assert "\n" not in str(error.value)


def test_reading_needs_no_torch() -> None:
    code = "import sys, kvbench.store, kvbench.store.kept; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
