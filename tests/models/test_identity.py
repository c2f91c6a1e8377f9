"""The identity of a folder covers every file that shapes ids, prompts or weights, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvbench import models
from kvbench.models import decoding
from tests.helpers import damaged_models
from tests.helpers.model_specs import spec


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    damaged_models.sound(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return damaged_models.copy(sound, tmp_path / "model")


def identity(folder: Path, **changes: object) -> str:
    return spec("local", path=str(folder), **changes).identity()


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "tekken.json"),
        *("chat_template.jinja", "chat_template.json", "chat_templates/tool.jinja", "generation_config.json"),
        *("additional_chat_templates/rag.jinja", "preprocessor_config.json", "processor_config.json"),
        *("adapter_config.json", "adapter_model.safetensors", "config.json"),
    ],
)
def test_a_file_that_shapes_ids_prompts_or_weights_counts(folder: Path, name: str) -> None:
    file = folder / name
    before = identity(folder)
    file.parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        file.write_bytes((folder / damaged_models.WEIGHTS).read_bytes())
    else:
        file.write_text(file.read_text() + "\n" if file.exists() else "{}")
    added = identity(folder)
    assert added != before
    file.write_bytes(file.read_bytes() + b" ")
    assert identity(folder) != added


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "LICENSE.txt", "figure.png", "pytorch_model.bin", ".gitattributes"]
)
def test_a_file_that_nothing_reads_does_not_count(folder: Path, name: str) -> None:
    before = identity(folder)
    (folder / name).write_text("words")
    assert identity(folder) == before


def test_the_folders_code_counts_where_it_runs(folder: Path) -> None:
    before, trusted = identity(folder), identity(folder, trust_remote_code=True)
    (folder / "code").mkdir()
    for name in ("modeling_own.py", "code/parts.py"):
        (folder / name).write_text("x = 1")
        assert identity(folder) == before
        assert identity(folder, trust_remote_code=True) != trusted
        trusted = identity(folder, trust_remote_code=True)


def test_code_of_another_repository_is_refused(folder: Path) -> None:
    damaged_models.config(auto_map={"AutoConfig": "owner/other--configuration.Own"})(folder)
    with pytest.raises(ValueError, match=r"its code lies in another repository \(owner/other--configuration\.Own\)"):
        models.max_length(spec("local", path=str(folder), trust_remote_code=True))
    assert models.max_length(spec("local", path=str(folder))) == 8192  # transformers' own Llama


def test_a_model_with_its_own_code_asks_for_trust(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    damaged_models.config(model_type="own", auto_map=auto_map)(folder)
    (folder / "configuration_own.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(
        ValueError, match=r"brings its own code; if you have read and trust it, set model\.trust_remote"
    ):
        models.max_length(spec("local", path=str(folder)))


def test_a_snapshot_of_the_hubs_cache_is_called_by_its_repository(sound: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--meta-llama--Llama-3.1-8B-Instruct" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    damaged_models.copy(sound, snapshot)
    assert spec("local", path=str(snapshot)).label == "Llama-3.1-8B-Instruct"
    (tmp_path / "llama-2-7b-chat").symlink_to(snapshot)
    assert spec("local", path=str(tmp_path / "llama-2-7b-chat")).label == "llama-2-7b-chat"


def test_settings_of_the_generation_config_are_named_and_stored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [1, 3], "do_sample": true, "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20}'
    )
    local = spec("local", path=str(folder), device="cpu")
    ignored = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
    assert models.decoding_of(local) == {"rule": "greedy, no penalties", "ignored": ignored}
    with caplog.at_level(logging.INFO):
        models.load(local)
    shown = "do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.05"
    assert [r.getMessage() for r in caplog.records if shown in r.getMessage()] == [
        f"model: decoded greedily; these settings of its generation config are not used: {shown}"
    ]


def test_settings_that_change_nothing_are_not_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": 1, "do_sample": false, "repetition_penalty": 1.0, "num_beams": 1, "top_p": 1.0}'
    )
    assert models.decoding_of(spec("local", path=str(folder)))["ignored"] == {}
    with caplog.at_level(logging.INFO):
        models.load(spec("local", path=str(folder), device="cpu"))
    assert "not used" not in caplog.text
    assert decoding.ignored(None) == {}
