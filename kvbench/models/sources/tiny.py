"""A random grouped-query Llama and a byte-level tokenizer, both built in code, for tests and dry runs.

The tokenizer has the traps of Llama-3's: it adds a BOS by itself and its chat template writes another one, so a
careless renderer gives two. A few merges exist, so that text can be cut in the middle of a token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.models import settings

if TYPE_CHECKING:
    from transformers import GenerationConfig, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

RECIPE = 1  # raise when the weights or the tokenizer change for the same config
SPECIALS = ("<s>", "</s>", "<|head|>", "<|end|>")
WORDS = ("the", "of", "and", "to", "in", "is", "that")  # each is merged, left to right, from a leading space
SIZES = {  # the largest value of each, far beyond what a dry run needs
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "vocab_size": 2**21,
    "max_position_embeddings": 2**40,
}
DIMS = (*SIZES, "initializer_range")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Source:
    """The tiny Llama of `dims`, with weights drawn from `seed`.

    Attributes:
        dims: sizes of the Llama config, and the standard deviation of its weights, `initializer_range`.
    """

    dims: Mapping[str, int | float]
    seed: int = 0

    answers: ClassVar[bool] = True
    trust_remote_code: ClassVar[bool] = False
    path: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        settings.integer("model.seed", self.seed, least=0, most=settings.LARGEST_SEED)
        dims = settings.mapping("model.dims", self.dims)
        for key in dims:
            if key not in DIMS:
                raise ValueError(f"model.dims.{key}: unknown; the dials are {', '.join(DIMS)}")
        size = {key: settings.integer(f"model.dims.{key}", dims.get(key), most=SIZES[key]) for key in SIZES}
        settings.number("model.dims.initializer_range", dims.get("initializer_range"))
        heads, groups = size["num_attention_heads"], size["num_key_value_heads"]
        if heads % groups:
            raise ValueError(f"model.dims.num_key_value_heads={groups}: must divide num_attention_heads={heads}")
        if size["hidden_size"] % heads:
            raise ValueError(
                f"model.dims.hidden_size={size['hidden_size']}: must be a multiple of num_attention_heads={heads}"
            )
        if size["head_dim"] % 2:
            raise ValueError(f"model.dims.head_dim={size['head_dim']}: must be even, for rotary positions")
        if size["vocab_size"] < vocab_size():
            raise ValueError(f"model.dims.vocab_size={size['vocab_size']}: the tokenizer needs {vocab_size()}")

    def own_name(self) -> str | None:
        return None

    def identity(self) -> str:
        """Return a hash of everything that the random weights depend on."""
        recipe = json.dumps([RECIPE, self.seed, {key: self.dims[key] for key in DIMS}], sort_keys=True)
        return "tiny:" + hashlib.sha256(recipe.encode()).hexdigest()

    def config(self) -> LlamaConfig:
        """Return the Llama config of the dims."""
        from transformers import LlamaConfig

        dims: dict[str, Any] = {key: self.dims[key] for key in DIMS}
        return LlamaConfig(
            **dims,
            bos_token_id=SPECIALS.index("<s>"),
            eos_token_id=SPECIALS.index("</s>"),
            pad_token_id=None,
            tie_word_embeddings=False,
        )

    def generation_config(self) -> GenerationConfig:
        """Return a generation config with the end-of-sequence id alone."""
        from transformers import GenerationConfig

        return GenerationConfig.from_model_config(self.config())

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the byte-level tokenizer."""
        return tokenizer()

    def model(self, dtype: str, device: str, device_map: str | None) -> PreTrainedModel:
        """Return the Llama with random weights, drawn in float32 on the CPU; torch's random state is left alone."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config(), attn_implementation="sdpa", dtype=torch.float32
            )
        return model if dtype == "auto" else model.to(getattr(torch, dtype))


def vocab_size() -> int:
    """Return the number of tokens of the tokenizer: specials, bytes and merges."""
    return len(SPECIALS) + 256 + len(_merges())


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer with its chat template. Specials have ids 0 to 3, as in `SPECIALS`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = _merges()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *alphabet, *(left + right for left, right in merges)]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)


def _merges() -> list[tuple[str, str]]:
    # byte-level spelling: a space is written Ġ and a newline Ċ
    merges = [("Ċ", "Ċ")]
    for word in WORDS:
        for cut in range(len(word)):
            pair = ("Ġ" + word[:cut], word[cut])
            if pair not in merges:
                merges.append(pair)
    return merges
