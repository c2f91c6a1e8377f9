"""Models of any published shape with random weights: as fast and as large as the real ones, with meaningless answers.

They measure time and memory where the real weights are not available. Matrices are drawn with variance 1 / inputs, so
that activations keep their size through any number of layers; norms are ones, biases zeros. One pool of numbers is
drawn from the seed and repeated over all matrices, which takes as long as copying: the same weights on every device.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from kvbench.models import settings

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RECIPE = 1  # raise when the weights change for the same config
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # transformers' model types that these dimensions describe
SIZES = {  # the largest value of each, several times that of any published model
    "layers": 10_000,
    "hidden": 2**20,
    "intermediate": 2**22,
    "heads": 2**16,
    "kv_heads": 2**16,
    "head_dim": 2**14,
    "vocab": 2**24,
    "positions": 2**40,
}
KEYS = ("architecture", *SIZES, "tied", "norm_eps", "rope")
_POOL = 16_777_213  # numbers; a prime, so that no two rows of a matrix begin at the same place of the pool


@dataclass(frozen=True)
class Source:
    """A shape of `architecture`, with weights drawn from `seed`.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, positions: sizes, as in the published config.
        tied: input and output embeddings are one matrix.
        norm_eps: of the RMS norms.
        rope: transformers' `rope_parameters`.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    tied: bool
    norm_eps: float
    rope: Mapping[str, object]
    seed: int = 0

    answers: ClassVar[bool] = False
    trust_remote_code: ClassVar[bool] = False
    path: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        settings.choice("model.architecture", self.architecture, ARCHITECTURES)
        for key, most in SIZES.items():
            settings.integer(f"model.{key}", getattr(self, key), most=most)
        if self.heads % self.kv_heads:
            raise ValueError(f"model.kv_heads={self.kv_heads}: must divide model.heads={self.heads}")
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden={self.hidden}: must be a multiple of model.heads={self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim}: must be even, for rotary positions")
        settings.flag("model.tied", self.tied)
        settings.number("model.norm_eps", self.norm_eps)
        settings.mapping("model.rope", self.rope)
        settings.integer("model.seed", self.seed, least=0, most=settings.LARGEST_SEED)

    def own_name(self) -> str | None:
        return None

    def identity(self) -> str:
        """Return a hash of everything that the random weights depend on."""
        recipe = json.dumps([RECIPE, self.seed, {key: getattr(self, key) for key in KEYS}], sort_keys=True)
        return "random:" + hashlib.sha256(recipe.encode()).hexdigest()

    def config(self) -> PreTrainedConfig:
        """Return the config of the shape: full attention in every layer, no token that ends an answer."""
        import torch
        from transformers import AutoConfig

        try:
            config: PreTrainedConfig = AutoConfig.for_model(
                self.architecture,
                num_hidden_layers=self.layers,
                hidden_size=self.hidden,
                intermediate_size=self.intermediate,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                head_dim=self.head_dim,
                vocab_size=self.vocab,
                max_position_embeddings=self.positions,
                tie_word_embeddings=self.tied,
                rms_norm_eps=self.norm_eps,
                rope_parameters=dict(self.rope),
                sliding_window=None,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        except Exception as error:  # every size is checked; transformers has rules of its own for rope alone
            raise ValueError(f"model.rope={dict(self.rope)}: transformers refuses it ({error!r})") from error
        config.dtype = torch.bfloat16  # as published
        return config

    def generation_config(self) -> GenerationConfig:
        """Return a generation config without a token that ends an answer."""
        from transformers import GenerationConfig

        return GenerationConfig.from_model_config(self.config())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return a stand-in that shows tokens as their numbers."""
        return cast("PreTrainedTokenizerBase", Ids())

    def model(self, dtype: str, device: str, device_map: str | None) -> PreTrainedModel:
        """Return the model with random weights, created on `device`; torch's random state is left alone."""
        import torch
        from transformers import AutoModelForCausalLM

        config = self.config()
        if dtype != "auto":
            config.dtype = getattr(torch, dtype)
        with torch.device("meta"):  # the usual initialisation would only be overwritten
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", dtype=config.dtype
            )
        model.to_empty(device=device)
        model.tie_weights()
        _restore_buffers(model, config, device)
        _fill(model, self.seed, device)
        return model


class Ids:
    """A stand-in for a tokenizer: there is no text, tokens are shown as their numbers."""

    eos_token_id = None

    def decode(self, ids: Sequence[int], **_: object) -> str:
        """Return the ids, separated by spaces."""
        return " ".join(map(str, ids))


def _restore_buffers(model: PreTrainedModel, config: PreTrainedConfig, device: str) -> None:
    """Compute the rotary frequencies again: their module's constructor left nothing on the meta device."""
    import torch

    rotary = [name for name, module in model.named_modules() if hasattr(module, "inv_freq")]
    for name in rotary:
        with torch.device(device):
            model.set_submodule(name, type(model.get_submodule(name))(config))
    lost = [name for name, _ in model.named_buffers() if not any(name.startswith(f"{prefix}.") for prefix in rotary)]
    if lost:
        raise ValueError(f"model.architecture={config.model_type}: buffers that cannot be restored: {lost}")


def _fill(model: PreTrainedModel, seed: int, device: str) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    count = sum(p.numel() for p in model.parameters())
    pool_P = torch.randn(min(_POOL, count), generator=generator).to(device, next(model.parameters()).dtype)
    at = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            at = _repeat(pool_P, at, parameter.view(-1))
            parameter.mul_(1 / math.sqrt(parameter.shape[1]))


def _repeat(pool_P: torch.Tensor, at: int, out_N: torch.Tensor) -> int:
    """Fill `out_N` with the pool, cyclically from place `at` on. Return the place where it ended."""
    done = 0
    while done < len(out_N):
        piece = pool_P[at : at + len(out_N) - done]
        out_N[done : done + len(piece)].copy_(piece)
        done += len(piece)
        at = (at + len(piece)) % len(pool_P)
    return at
