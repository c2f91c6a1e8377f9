"""The settings of a generation config that kvbench ignores: it decodes greedily, without penalties.

A benchmark of cache compression wants the most likely answer, the same in every run. Many chat models ship settings
for conversation instead (Qwen2.5-Instruct: repetition_penalty 1.05, temperature 0.7). They are ignored, named once on
the console, and stored in the identity of every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig

RULE = "greedy, no penalties"
_KEYS = (  # settings of transformers that change which token comes next, or when an answer ends
    *("do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("num_beams", "num_beam_groups", "penalty_alpha", "dola_layers", "length_penalty", "early_stopping"),
    *("diversity_penalty", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "renormalize_logits", "constraints"),
    *("force_words_ids", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "watermarking_config", "token_healing"),
    *("stop_strings", "min_length", "min_new_tokens", "max_time"),
)


def ignored(generation: GenerationConfig | None) -> dict[str, object]:
    """Return the settings of a generation config that kvbench does not honour, as key: value."""
    if generation is None:
        return {}
    content = generation.to_dict()
    return {key: content[key] for key in _KEYS if not _is_neutral(content.get(key))}


def _is_neutral(value: object) -> bool:
    """Return True for a value that changes nothing in greedy decoding: unset, a factor of 1, a length of 0."""
    return value is None or value is False or value == [] or (value is not True and value in (0, 1))
