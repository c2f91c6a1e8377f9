"""Models of published shapes with random weights: their sizes, their numbers, and where they are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import kvbench
from kvbench import config, models
from kvbench.models.sources import random
from tests.helpers.model_specs import spec

SHAPES = sorted(name for name in config.options("model") if name.startswith("shape/"))
PARAMETERS = {  # as the models' own weight files have them, tied embeddings once
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "mistral_7b_v02": 7_241_732_096,
    "qwen25_7b": 7_615_616_512,
    "qwen3_8b": 8_190_735_360,
    "qwen3_32b": 32_762_123_264,
    "smollm2_135m": 134_515_008,
}
TINY = {"layers": 3, "hidden": 64, "intermediate": 96, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 300}


def shape_spec(name: str, /, **changes: Any) -> models.ModelSpec:
    return spec(f"shape/{name}", **{"device": "cpu", **changes})


def test_every_shape_is_known_here() -> None:
    assert {name.removeprefix("shape/") for name in SHAPES} == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_as_many_parameters_as_published(name: str) -> None:
    size = models.shape(shape_spec(name))
    assert size.weight_bytes == 2 * PARAMETERS[name] and size.itemsize == 2
    fewer = models.shape(shape_spec(name, layers=1, dtype="float32"))
    assert fewer.layers == 1 and fewer.weight_bytes < 2 * size.weight_bytes


@pytest.mark.parametrize("name", ["llama31_8b", "llama32_1b", "mistral_7b_v02", "qwen25_7b", "qwen3_8b"])
def test_it_computes_what_transformers_computes_with_the_same_weights(name: str) -> None:
    """Buffers that no weight file holds, the rotary frequencies above all, are as its own constructor makes them."""
    shape = shape_spec(name, **TINY, dtype="float32")
    loaded = models.load(shape)
    theirs = AutoModelForCausalLM.from_config(
        shape.source.config(), attn_implementation="sdpa", dtype=torch.float32
    ).eval()
    theirs.load_state_dict(loaded.model.state_dict())
    ids = torch.arange(2, 290)[None]
    with torch.inference_mode():
        ours, reference = loaded.model(ids).logits, theirs(ids).logits
    torch.testing.assert_close(ours, reference)
    assert ours.isfinite().all() and 0.5 < ours.std() < 2
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    tied = loaded.model.get_input_embeddings().weight is loaded.model.get_output_embeddings().weight
    assert tied == shape.source.config().tie_word_embeddings


def test_weights_come_from_the_seed_alone() -> None:
    def weights(**changes: Any) -> torch.Tensor:
        return torch.cat(
            [p.flatten() for p in models.load(shape_spec("qwen25_7b", **TINY, **changes)).model.parameters()]
        )

    state = torch.get_rng_state()
    first = weights()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(first, weights()) and first.dtype == torch.bfloat16
    assert not torch.equal(first, weights(seed=1))
    matrix = models.load(shape_spec("qwen25_7b", **TINY)).model.model.layers[1].mlp.gate_proj.weight.float()
    assert matrix.std() * 8 == pytest.approx(1, abs=0.05) and matrix.mean().abs() < 0.01


def test_no_two_rows_of_a_matrix_are_equal_though_the_pool_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "_POOL", 997)
    matrix = models.load(shape_spec("llama31_8b", **TINY)).model.lm_head.weight
    assert len({tuple(row.tolist()) for row in matrix}) == len(matrix)


def test_the_identity_holds_what_the_weights_depend_on() -> None:
    first = shape_spec("llama31_8b").identity()
    assert first == shape_spec("llama31_8b", dtype="float32", device="auto").identity()
    others = [
        shape_spec("llama31_8b", layers=2),
        shape_spec("llama31_8b", seed=1),
        shape_spec("llama31_70b"),
        shape_spec("mistral_7b_v02"),
    ]
    assert len({first, *(other.identity() for other in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "model.layers=0: must be an integer, at least 1"),
        ({"kv_heads": 3}, "model.kv_heads=3: must divide model.heads=32"),
        ({"head_dim": 15}, "model.head_dim=15: must be even"),
        ({"architecture": "gpt2"}, "model.architecture=gpt2: choose one of llama, mistral"),
        ({"hidden": 65}, "model.hidden=65: must be a multiple of model.heads=32"),
        ({"layers": 10**9}, "model.layers=1000000000: must be at most 10000"),
        ({"norm_eps": float("nan")}, "model.norm_eps=nan: must be a finite number"),
        ({"tied": None}, "model.tied=None: must be true or false"),
        ({"rope": 3}, "model.rope=3: must be a dictionary"),
        ({"seed": -1}, "model.seed=-1: must be an integer, at least 0"),
        ({"path": "x"}, "model.path=x: model.kind=random has no path"),
    ],
)
def test_an_impossible_shape_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        shape_spec("llama31_8b", **changes)


def test_it_generates_ids_and_has_no_text() -> None:
    loaded = kvbench.load_model("shape/llama31_8b", **TINY, device="cpu")
    assert loaded.max_length == 131072 and loaded.eos_ids == frozenset()
    answers = kvbench.generate(loaded.model, loaded.tokenizer, [range(100)], [("snapkv", 40)], max_new_tokens=5)
    assert len(answers[0][0].token_ids) == 5 and answers[0][0].text == " ".join(map(str, answers[0][0].token_ids))
    assert answers[0][0].kept_mean == 40
    with pytest.raises(ValueError, match=r"^model=shape/llama31_8b: random weights answer nothing"):
        models.load_tokenizer(shape_spec("llama31_8b"))


def test_a_benchmark_refuses_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvbench", "model=shape/llama31_8b"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and not (tmp_path / "outputs" / "runs").exists()
    message = "kvbench: model=shape/llama31_8b: random weights answer nothing; measure time and memory with "
    assert done.stderr == f"{message}kvbench profile\n"
