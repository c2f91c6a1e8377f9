"""Models that kvbench cannot compress are refused by their config; the others know how long a prompt may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from kvbench import models
from kvbench.models import layers
from tests.helpers import damaged_models
from tests.helpers.model_specs import spec


def config(model_type: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **changes)


def _known(*cases: tuple[str, str]) -> list[tuple[PreTrainedConfig, str]]:
    """Return (config, reason) of the model types that this version of transformers has."""
    return [(config(name), reason) for name, reason in cases if name in CONFIG_MAPPING]


REFUSED = [
    *_known(
        ("falcon_h1", "recurrent or convolution state"),
        ("mamba2", "recurrent or convolution state"),
        ("jamba", "recurrent or convolution state"),
        ("qwen3_next", "recurrent or convolution state"),
        ("nemotron_h", "recurrent or convolution state"),
        ("granitemoehybrid", "recurrent or convolution state"),
        ("recurrent_gemma", "recurrent or convolution state|attention interface"),
        ("rwkv", "recurrent or convolution state"),
        ("minimax", "layers of type linear_attention keep a recurrent or"),
        ("deepseek_v2", "one latent vector"),
        ("deepseek_v3", "one latent vector"),
        ("gemma2", "without SDPA|caps its logits"),
        ("gpt_oss", "without SDPA"),
        ("t5", "encoder-decoder"),
        ("bart", "encoder-decoder"),
        ("bert", "attend to later ones"),
        ("vit", "no causal language model"),
        ("bloom", "without transformers' attention interface"),
        ("gemma3n", "read the keys and values of other layers"),
        ("mllama", "attend to another input"),
    ),
    (config("lfm2", layer_types=["conv", "full_attention"] * 16), "layers of type conv keep a recurrent or"),
    (config("llama", v_head_dim=64, head_dim=128), "its values are 64 wide and its keys 128"),
    (config("llama", attn_logit_softcapping=30.0), "caps its logits"),
    (config("qwen2", layer_types=["sliding_attention"] * 32, sliding_window=None), "does not say how far they look"),
]


@pytest.mark.parametrize(("refused", "reason"), REFUSED, ids=[c.model_type for c, _ in REFUSED])
def test_a_model_that_cannot_be_compressed_is_one_line(refused: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^{refused.model_type} is not supported: .*({reason}).*choose another") as e:
        layers.check(refused)
    assert "\n" not in str(e.value)


def test_a_type_of_layer_that_nobody_knows_is_refused() -> None:
    unknown = config("qwen2")
    unknown.layer_types = ["full_attention", "some_new_attention"]  # as a later transformers may have it
    with pytest.raises(ValueError, match="layers of type some_new_attention are unknown"):
        layers.check(unknown)


@pytest.mark.parametrize(
    ("supported", "limit"),
    [
        (config("llama"), None),
        (config("qwen3"), None),
        (config("gemma3_text"), None),  # some of its layers slide, the others are compressed
        (config("cohere2"), None),
        (config("mistral", sliding_window=None), None),
        (config("mistral", sliding_window=4096), 4096),
        (config("phi3", sliding_window=2047), 2047),
        (config("qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=0), 512),
        (config("qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=16), None),
        (config("qwen2", use_sliding_window=False, sliding_window=512), None),
        (config("llama4_text", attn_temperature_tuning=False), None),
        (config("llama4_text"), 8191),  # from this position on, the scale of its NoPE layers is not 1
        (config("gpt2"), None),
        (config("smollm3"), None),
    ],
)
def test_windows_limit_a_model_only_where_all_layers_have_one(supported: PreTrainedConfig, limit: int | None) -> None:
    layers.check(supported)
    assert layers.window_limit(supported) == limit


def test_learned_positions_are_told_from_computed_ones() -> None:
    assert layers.has_learned_positions(config("gpt2")) and layers.has_learned_positions(config("opt"))
    for name in ("llama", "qwen2", "gemma3_text", "gpt_neox", "smollm3"):
        assert not layers.has_learned_positions(config(name)), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    damaged_models.sound(tmp_path / "sound")
    return tmp_path / "sound"


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | content))


def test_the_refusal_names_the_override_before_weights_are_read(folder: Path) -> None:
    write(folder, config("falcon_h1").to_dict())
    with pytest.raises(ValueError, match=rf"^model\.path={folder}: falcon_h1 is not supported: ") as caught:
        models.max_length(spec("local", path=str(folder)))
    assert "\n" not in str(caught.value)


def test_a_window_is_the_longest_prompt_and_no_override_lifts_it(folder: Path) -> None:
    write(folder, {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 100})
    assert models.max_length(spec("local", path=str(folder))) == 100
    assert models.max_length(spec("local", path=str(folder), max_length=60)) == 60
    with pytest.raises(ValueError, match=r"^model\.max_length=101: sound takes at most 100 tokens, no layer looks"):
        models.max_length(spec("local", path=str(folder), max_length=101))
    assert models.load(spec("local", path=str(folder), device="cpu")).max_length == 100


def test_learned_positions_end_and_no_override_lifts_that(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from kvbench.models.sources import tiny

    learned = config("gpt2", n_layer=2, n_embd=32, n_head=2, vocab_size=320, n_positions=64, eos_token_id=1)
    AutoModelForCausalLM.from_config(learned).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert models.max_length(spec("local", path=str(tmp_path))) == 64
    assert models.load(spec("local", path=str(tmp_path), device="cpu")).max_length == 64
    with pytest.raises(ValueError, match=r"^model\.max_length=65: .* at most 64 tokens, it has learned positions"):
        models.max_length(spec("local", path=str(tmp_path), max_length=65))
