"""A random grouped-query Llama and a byte-level tokenizer, both made in code: for tests and dry runs.

The tokenizer behaves like Llama-3's where it hurts: it adds a BOS by itself and its chat template writes one
too, so a careless renderer gives two. A few merges exist, so that text can be cut in the middle of a token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RECIPE = 1  # raise when the weights or the tokenizer change for the same config
SPECIALS = ("<s>", "</s>", "<|head|>", "<|end|>")
WORDS = ("the", "of", "and", "to", "in", "is", "that")  # each is merged, left to right, from a leading space
DIMS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "initializer_range",
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)


def check(cfg: Mapping[str, Any]) -> None:
    """Validate seed and dims. Raises ValueError."""
    dims = cfg["dims"]
    for key in dims:
        if key not in DIMS:
            raise ValueError(f"model.dims.{key}: unknown; the dials are {', '.join(DIMS)}")
    for key in DIMS:
        if dims.get(key) is None or dims[key] <= 0:
            raise ValueError(f"model.dims.{key}={dims.get(key)}: must be a number above 0")
    heads, groups = dims["num_attention_heads"], dims["num_key_value_heads"]
    if heads % groups:
        raise ValueError(f"model.dims.num_key_value_heads={groups}: must divide num_attention_heads={heads}")
    if dims["head_dim"] % 2:
        raise ValueError(f"model.dims.head_dim={dims['head_dim']}: must be even, for rotary positions")
    if dims["vocab_size"] < vocab_size():
        raise ValueError(f"model.dims.vocab_size={dims['vocab_size']}: the tokenizer needs {vocab_size()}")


def identity(cfg: Mapping[str, Any]) -> str:
    """A hash of everything that the random weights depend on."""
    recipe = json.dumps([RECIPE, cfg["seed"], {key: cfg["dims"][key] for key in DIMS}], sort_keys=True)
    return "tiny:" + hashlib.sha256(recipe.encode()).hexdigest()


def config(cfg: Mapping[str, Any]) -> Any:
    """The Llama config of `cfg["dims"]`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **{key: cfg["dims"][key] for key in DIMS},
        bos_token_id=SPECIALS.index("<s>"),
        eos_token_id=SPECIALS.index("</s>"),
        pad_token_id=None,
        tie_word_embeddings=False,
    )


def model(cfg: Mapping[str, Any]) -> Any:
    """The Llama of `cfg["dims"]`, random weights from `cfg["seed"]`; torch's random state is left alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(cfg["seed"]))
        made: Any = AutoModelForCausalLM.from_config(config(cfg), attn_implementation="sdpa", dtype=torch.float32)
    return made.to(torch.float32 if cfg["dtype"] == "auto" else getattr(torch, cfg["dtype"]))


def vocab_size() -> int:
    """Tokens of the tokenizer: specials, bytes and merges."""
    return len(SPECIALS) + 256 + len(_merges())


def tokenizer() -> Any:
    """The byte-level tokenizer with its chat template. Specials have ids 0 to 3, as in `SPECIALS`."""
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
