"""Models of any published shape with random weights: as fast and as large as the real ones, and they answer nonsense.

For measuring time and memory where weights cannot be had. Matrices are drawn with variance 1 / inputs, so that
activations keep their size through any number of layers; norms are ones, biases zeros. One pool of numbers is drawn
from the seed and repeated over all matrices, which takes as long as copying: the same weights on every device.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

RECIPE = 1  # raise when the weights change for the same config
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # transformers' model types that these dimensions describe
SIZES = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab", "positions")
KEYS = ("architecture", *SIZES, "tied", "norm_eps", "rope")
_POOL = 16_777_213  # numbers; a prime, so that no two rows of a matrix begin at the same place of the pool


def check(cfg: Mapping[str, Any]) -> None:
    """Validate architecture, sizes and seed. Raises ValueError."""
    if cfg.get("architecture") not in ARCHITECTURES:
        raise ValueError(f"model.architecture={cfg.get('architecture')}: choose one of {', '.join(ARCHITECTURES)}")
    for key in SIZES:
        value = cfg.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"model.{key}={value}: must be an integer above 0")
    if cfg["heads"] % cfg["kv_heads"]:
        raise ValueError(f"model.kv_heads={cfg['kv_heads']}: must divide model.heads={cfg['heads']}")
    if cfg["head_dim"] % 2:
        raise ValueError(f"model.head_dim={cfg['head_dim']}: must be even, for rotary positions")
    if not isinstance(cfg.get("seed"), int) or cfg["seed"] < 0:
        raise ValueError(f"model.seed={cfg.get('seed')}: must be an integer, at least 0")


def identity(cfg: Mapping[str, Any]) -> str:
    """A hash of everything that the random weights depend on."""
    recipe = json.dumps([RECIPE, cfg["seed"], {key: cfg[key] for key in KEYS}], sort_keys=True)
    return "random:" + hashlib.sha256(recipe.encode()).hexdigest()


def config(cfg: Mapping[str, Any]) -> Any:
    """The transformers config of the shape; full attention in every layer, no token that ends an answer."""
    from transformers import AutoConfig

    made = AutoConfig.for_model(
        str(cfg["architecture"]),
        num_hidden_layers=cfg["layers"],
        hidden_size=cfg["hidden"],
        intermediate_size=cfg["intermediate"],
        num_attention_heads=cfg["heads"],
        num_key_value_heads=cfg["kv_heads"],
        head_dim=cfg["head_dim"],
        vocab_size=cfg["vocab"],
        max_position_embeddings=cfg["positions"],
        tie_word_embeddings=cfg["tied"],
        rms_norm_eps=cfg["norm_eps"],
        rope_parameters=dict(cfg["rope"]),
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    made.dtype = _dtype(cfg)
    return made


def model(cfg: Mapping[str, Any], device: str) -> Any:
    """The model of the shape with its random weights, made on `device`; torch's random state is left alone."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = config(cfg)
    with torch.device("meta"):  # nothing is initialised twice
        made: Any = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa", dtype=_dtype(cfg))
    made.to_empty(device=device)
    made.tie_weights()
    _restore_buffers(made, settings, device)
    _fill(made, int(cfg["seed"]), device)
    return made


class Ids:
    """What stands in for a tokenizer: there is no text, tokens are shown as their numbers."""

    eos_token_id = None

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def _dtype(cfg: Mapping[str, Any]) -> Any:
    import torch

    return torch.bfloat16 if cfg["dtype"] == "auto" else getattr(torch, cfg["dtype"])


def _restore_buffers(made: Any, settings: Any, device: str) -> None:
    """Rotary frequencies are computed by their module's constructor, which left nothing on the meta device."""
    import torch

    rotary = [name for name, module in made.named_modules() if hasattr(module, "inv_freq")]
    for name in rotary:
        with torch.device(device):
            made.set_submodule(name, type(made.get_submodule(name))(settings))
    lost = [name for name, _ in made.named_buffers() if not any(name.startswith(f"{prefix}.") for prefix in rotary)]
    if lost:
        raise ValueError(f"model.architecture={settings.model_type}: buffers that cannot be restored: {lost}")


def _fill(made: Any, seed: int, device: str) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    numbers = sum(p.numel() for p in made.parameters())
    pool_P = torch.randn(min(_POOL, numbers), generator=generator).to(device, next(made.parameters()).dtype)
    at = 0
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            at = _repeat(pool_P, at, parameter.view(-1))
            parameter.mul_(1 / math.sqrt(parameter.shape[1]))


def _repeat(pool_P: Any, at: int, out_N: Any) -> int:
    """Fill `out_N` with the pool, from place `at` on and round and round; the place where it ended."""
    done = 0
    while done < len(out_N):
        piece = pool_P[at : at + len(out_N) - done]
        out_N[done : done + len(piece)].copy_(piece)
        done += len(piece)
        at = (at + len(piece)) % len(pool_P)
    return at
