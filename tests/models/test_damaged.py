"""A damaged model folder is one line that names the folder and the file or key, before memory is taken."""

from __future__ import annotations

import importlib.util
import resource
import time
from pathlib import Path

import pytest

from kvbench import models
from kvbench.models import ModelSpec
from tests.helpers import damaged_models
from tests.helpers.damaged_models import CASES
from tests.helpers.model_specs import node, spec


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    damaged_models.sound(folder)
    return folder


def use(model: ModelSpec) -> None:
    """Do with a model what a run does, in its order."""
    model.identity()
    models.max_length(model)
    tokenizer = models.load_tokenizer(model)
    models.end_ids(model, tokenizer)
    models.shape(model)
    models.load(model)


def test_the_sound_folder_loads(sound: Path) -> None:
    use(spec("local", path=str(sound), device="cpu"))


def test_an_adapter_next_to_the_weights_needs_peft_and_safetensors(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would leave it out without peft, and read a pickle where there is no safetensors file."""
    folder = damaged_models.copy(sound, tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    model = spec("local", path=str(folder), device="cpu")
    find_spec = importlib.util.find_spec
    for peft, message in (
        (None, "without the package peft its adapter would be left out; install it, or choose another model$"),
        (find_spec("json"), "without adapter_model.safetensors; no other format is loaded; "),
    ):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, answer=peft: answer if name == "peft" else find_spec(name)
        )
        with pytest.raises(ValueError, match=rf"^model.path={folder}: .*{message}"):
            models.load(model)


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_folder_is_one_line(name: str, sound: Path, tmp_path: Path) -> None:
    damage, message = CASES[name]
    folder = damaged_models.copy(sound, tmp_path / "model")
    damage(folder)
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        use(ModelSpec.from_node(node("local", path=str(folder), device="cpu")))
    text = str(caught.value)
    assert text.startswith(f"model.path={folder}: ") and "\n" not in text and len(text) < 600
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000, "memory was taken first"
