"""The protocols that published LongBench tables were made with, as data.

They differ in truncation, chat wrapper, BOS, stop tokens and the metric of the code tasks. A rule that depends on the
model is a pair of words and a value: it holds if all words occur in the model's name. The last rule that holds counts,
as in the original scripts. Sources: LongBench (arXiv 2308.14508), Ada-KV (2407.11550), PyramidKV (2406.02069, December
2024, and its successor KVCache-Factory, 2026), WindowKV (2503.17922), NVIDIA kvpress, and the question-agnostic runs of
Ada-KV's authors (FFY0/DefensiveKV). docs/benchmarks.md says what no source proves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kvbench.benchmarks.base import ModelFacts, Rendering, resolve

VERSION = 2  # raise when a preset changes what is generated

UNWRAPPED = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")  # continued, not answered
_LLAMA3 = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
_LLAMA3 += "<|start_header_id|>assistant<|end_header_id|>\n\n"

Words = tuple[str, ...]
Value = TypeVar("Value")


def last_rule(rules: Iterable[tuple[Words, Value]], model: ModelFacts) -> tuple[Words, Value] | None:
    """Return the last rule whose words all occur in one of the model's names; None if there is none."""
    holding = [rule for rule in rules if model.is_called(*rule[0])]
    return holding[-1] if holding else None


@dataclass(frozen=True)
class Preset:
    """One published way to run LongBench.

    Attributes:
        rendering: what is the same for every model and dataset.
        lengths, wrappers: rules by model name, which replace the rendering's max_length and wrapper.
        early: rules for models that are wrapped before truncation, on every dataset.
        own_wrapper: words in the names of models with a wrapper or a post-processing that is not here.
        wraps_all: the chat wrapper also around the six datasets that LongBench leaves bare.
        newline: samsum ends at a newline. samsum_stops: and in addition at these (see `Rendering.stops`).
        never_empty: datasets whose first new token cannot be a stop: "none", "samsum" or "all".
        extra_tokens: added to every dataset's number of new tokens.
        split: the file that cuts the prompts into context and question; "" cuts after the context.
        question: "aware" or "agnostic".
        code_backend, strip: switches of `kvbench.metrics.longbench_score`.
    """

    rendering: Rendering
    lengths: tuple[tuple[Words, int], ...] = ()
    wrappers: tuple[tuple[Words, str], ...] = ()
    early: tuple[Words, ...] = ()
    own_wrapper: tuple[str, ...] = ()
    wraps_all: bool = False
    newline: bool = True
    samsum_stops: str = ""
    never_empty: str = "samsum"
    extra_tokens: int = 0
    split: str = ""
    question: str = "aware"
    code_backend: str = "difflib"
    strip: str = "none"

    def rendering_for(self, model: ModelFacts, dataset: str) -> Rendering:
        """Return the rendering with the rules of a model and a dataset applied."""
        rendering = self.rendering
        if length := last_rule(self.lengths, model):
            rendering = replace(rendering, max_length=length[1])
        if wrapper := last_rule(self.wrappers, model):
            rendering = replace(rendering, wrapper=wrapper[1])
        if self._wraps_early(model):
            rendering = replace(rendering, wrap_first=True)
        if dataset == "samsum" and self.samsum_stops:
            rendering = replace(rendering, stops=self.samsum_stops)
        return rendering

    def chat(self, model: ModelFacts, dataset: str) -> bool:
        """Return True if a dataset's prompts are wrapped."""
        return self.wraps_all or dataset not in UNWRAPPED or self._wraps_early(model)

    def _wraps_early(self, model: ModelFacts) -> bool:
        return any(model.is_called(*words) for words in self.early)

    def min_new_tokens(self, dataset: str) -> int:
        """Return 1 where an empty answer is impossible, else 0."""
        return int(self.never_empty in ("all", dataset))

    def reasons(self, model: ModelFacts, wrapper: str | None = None, max_length: int | None = None) -> str:
        """Return in words which wrapper and length are used, and why: the user's setting, or the model's name."""
        chosen_length = _length_in_words(self.rendering, model)
        return ". ".join(
            [
                _reason("wrapper", self.wrappers, repr(self.rendering.wrapper), model, wrapper),
                _reason("length", self.lengths, chosen_length, model, max_length),
            ]
        )


def _reason(what: str, rules: Sequence[tuple[Words, Value]], default: str, model: ModelFacts, own: object) -> str:
    """Return in words what is used of rules by model name, and why. `own` is the user's setting, None for none."""
    if own is not None:
        setting = "max_length" if what == "length" else what
        return f"{what} {own!r}, as benchmark.{setting} says"
    rule = last_rule(rules, model)
    if rule is not None:
        return f"{what} {rule[1]!r}, as the model's name has {' and '.join(rule[0])}"
    if rules:
        known = "; ".join(" and ".join(words) for words, _ in rules)
        return f"{what} {default}, as the model's name {' and '.join(model.names)} has none of: {known}"
    return f"{what} {default} for every model"


def _length_in_words(rendering: Rendering, model: ModelFacts) -> str:
    """Return the length of a prompt where no rule holds, as a number with its origin."""
    length = resolve(rendering, model.max_length).max_length
    if model.max_length is None:
        return "unlimited" if length is None else repr(length)
    if rendering.max_length == "auto":
        return f"{length} (what the model's {model.max_length} positions leave)"
    return f"{model.max_length} (all of the model's positions)" if length is None else repr(length)


def _any_of(value: Value, *names: str) -> tuple[tuple[Words, Value], ...]:
    """Return one rule per name, with the same value."""
    return tuple(((name,), value) for name in names)


# All of these repositories used transformers 4, which cleans up decoded text.
_MIDDLE = Rendering(style="upstream", max_length="auto", truncation="middle", clean_up_spaces=True)
_APART = Rendering(
    style="upstream",
    wrapper="native",
    truncation="context",
    clean_up_spaces=True,
    stops="model",
    first_may_stop=False,
    span="context",
)
_LLAMA2_NAMES = ("llama2", "llama-2")
_LLAMA3_NAMES = ("llama3", "llama-3")

PRESETS: dict[str, Preset] = {
    "longbench-original": Preset(
        replace(_MIDDLE, stops="model"),
        lengths=(
            *_any_of(3500, "llama2-7b-chat", "llama-2-7b-chat"),
            *_any_of(31500, "longchat"),
            *_any_of(7500, "xgen", "internlm"),
            *_any_of(31500, "chatglm"),
            *_any_of(15500, "vicuna"),
        ),
        wrappers=_any_of("[INST]{prompt}[/INST]", *_LLAMA2_NAMES),
        own_wrapper=("longchat", "xgen", "internlm", "chatglm", "vicuna"),
        samsum_stops="tokenizer",
    ),
    "adakv-2024": Preset(
        replace(_MIDDLE, stops="tokenizer", wrapper="none", bos="added"),
        lengths=_any_of(31500, "mistral"),
        wrappers=((("llama-3", "instruct"), "native"), *_any_of("[INST]{prompt}[/INST]", "llama2")),
    ),
    "pyramidkv-2024": Preset(
        replace(_MIDDLE, stops="tokenizer", wrapper="none", wrap_first=True),
        lengths=(*_any_of(3950, *_LLAMA2_NAMES), *_any_of(7950, *_LLAMA3_NAMES), *_any_of(31500, "mistral")),
        wrappers=_any_of("[INST] {prompt} [/INST]", "llama2"),
        wraps_all=True,
        newline=False,
        never_empty="all",
        code_backend="indel",
    ),
    "kvcf-2026": Preset(
        replace(_MIDDLE, wrapper="none"),
        lengths=(*_any_of(3950, *_LLAMA2_NAMES), *_any_of(7500, *_LLAMA3_NAMES), *_any_of(31500, "mistral")),
        wrappers=(*_any_of(_LLAMA3, *_LLAMA3_NAMES), *_any_of("[INST] {prompt} [/INST]", "llama2")),
        early=(("llama2",),),
        never_empty="all",
        code_backend="indel",
    ),
    "windowkv": Preset(
        replace(_MIDDLE, truncation="middle_ids", wrapper="none", stops="model"),
        lengths=(*_any_of(7950, *_LLAMA3_NAMES), *_any_of(15500, "qwen2.5-1.5b", "qwen25_1.5b")),
        wraps_all=True,
        newline=False,
        never_empty="none",
        code_backend="indel",
    ),
    "kvpress": Preset(
        replace(_APART, bare_tail="\n"),
        wraps_all=True,
        newline=False,
        never_empty="none",
        extra_tokens=20,
        split="kvpress",
        question="agnostic",
        strip="leading",
    ),
    "ffy0-agnostic": Preset(
        _APART,
        samsum_stops="tokenizer",
        never_empty="none",
        split="ffy0",
        question="agnostic",
    ),
}
