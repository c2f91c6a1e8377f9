"""Small tokenizers that behave like the real families: BOS of their own or not, templates, spaces, bytes."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from kvbench.models.sources import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if think is defined and not think %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def tiny_tokenizer(template: str | None = tiny.TEMPLATE):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def gpt_style(template: str | None = None):
    """Build a byte-level tokenizer that adds no BOS: GPT-2, Qwen, SmolLM2. Its "BOS" <|im_start|> opens turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(token_models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|endoftext|>", chat_template=template
    )


def sentencepiece_style(prefix: str, template: str | None = None):
    """Build a tokenizer whose words begin with ▁, with bytes for unknown characters: Llama-2 and Mistral.

    prefix "first" puts a ▁ at the start of a text, "always" (the older form) also after each special token.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?[]/<>|_0123456789"
    merges = [("▁", c) for c in letters[1:] if c.isalpha()] + [("▁", "▁")]
    for token in [*letters, *(left + right for left, right in merges)]:
        vocab[token] = len(vocab)
    backend = Tokenizer(token_models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    if prefix == "always":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ("<unk>", "<s>", "</s>")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


ALL = {
    "tiny, template writes a BOS": tiny_tokenizer,
    "tiny, no template": lambda: tiny_tokenizer(None),
    "tiny, template without BOS": lambda: tiny_tokenizer(tiny.TEMPLATE.replace("{{ bos_token }}", "")),
    "gpt": gpt_style,
    "gpt, chatml": lambda: gpt_style(CHATML),
    "sentencepiece first": lambda: sentencepiece_style("first"),
    "sentencepiece first, llama-2 template": lambda: sentencepiece_style("first", LLAMA2),
    "sentencepiece always": lambda: sentencepiece_style("always"),
    "sentencepiece always, llama-2 template": lambda: sentencepiece_style("always", LLAMA2),
}
every_tokenizer = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
