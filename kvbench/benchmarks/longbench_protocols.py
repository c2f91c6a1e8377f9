"""The protocols that published LongBench tables were made with, as data.

Between them they differ by up to ten points on the same model: in truncation, chat wrapper, BOS, stop tokens and the
metric of the code tasks. A rule that depends on the model is a list of (part of the model's name, value); the last
that fits counts, as in the original scripts. Sources: LongBench (arXiv 2308.14508), Ada-KV (2407.11550), PyramidKV
(2406.02069, December 2024, and its successor KVCache-Factory, 2026), WindowKV (2503.17922), NVIDIA kvpress, and the
question-agnostic runs of Ada-KV's authors (FFY0/DefensiveKV).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvbench.benchmarks.base import ModelFacts, Rendering

VERSION = 1  # raise when a preset changes what is generated

UNWRAPPED = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")  # continued, not answered
_LLAMA3 = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
_LLAMA3 += "<|start_header_id|>assistant<|end_header_id|>\n\n"


@dataclass(frozen=True)
class Preset:
    """One published way to run LongBench.

    Attributes:
        rendering: what is the same for every model and dataset.
        lengths, wrappers: rules by model name, which replace the rendering's max_length and wrapper.
        early: names of models that are wrapped before truncation, on every dataset.
        own_wrapper: names of models with a wrapper or a post-processing that is not here.
        wraps_all: the chat wrapper also around the six datasets that LongBench leaves bare.
        newline: samsum ends at a newline. samsum_stops: and besides at these (see `Rendering.stops`).
        never_empty: datasets whose first new token cannot be a stop: "none", "samsum" or "all".
        extra_tokens: added to every dataset's number of new tokens.
        split: the file that cuts the prompts into context and question; "" cuts after the context.
        question: "aware" or "agnostic".
        scoring: switches of `kvbench.metrics.longbench_score`.
    """

    rendering: Rendering
    lengths: tuple[tuple[str, int], ...] = ()
    wrappers: tuple[tuple[str, str], ...] = ()
    early: tuple[str, ...] = ()
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
        """The rendering with the rules of a model and a dataset applied."""
        made = self.rendering
        for name, length in self.lengths:
            if model.called(name):
                made = replace(made, max_length=length)
        for name, wrapper in self.wrappers:
            if model.called(name):
                made = replace(made, wrapper=wrapper)
        if any(map(model.called, self.early)):
            made = replace(made, wrap_first=True)
        if dataset == "samsum" and self.samsum_stops:
            made = replace(made, stops=self.samsum_stops)
        return made

    def chat(self, model: ModelFacts, dataset: str) -> bool:
        """Whether a dataset's prompts are wrapped."""
        return self.wraps_all or dataset not in UNWRAPPED or any(map(model.called, self.early))

    def min_new_tokens(self, dataset: str) -> int:
        """1 where an empty answer is impossible."""
        return int(self.never_empty in ("all", dataset))


_MIDDLE = Rendering(style="upstream", max_length="auto", truncation="middle")
_APART = Rendering(
    style="upstream", wrapper="native", truncation="context", stops="model", first_may_stop=False, span="context"
)
_PYRAMIDKV_LENGTHS = (("llama2", 3950), ("llama-2", 3950), ("mistral", 31500))

PRESETS: dict[str, Preset] = {
    "longbench-original": Preset(
        replace(_MIDDLE, stops="model"),
        lengths=(
            ("llama2-7b-chat", 3500),
            ("llama-2-7b-chat", 3500),
            ("longchat", 31500),
            ("xgen", 7500),
            ("internlm", 7500),
            ("chatglm", 31500),
            ("vicuna", 15500),
        ),
        wrappers=(
            ("llama2", "[INST]{prompt}[/INST]"),
            ("llama-2", "[INST]{prompt}[/INST]"),
        ),
        own_wrapper=("longchat", "xgen", "internlm", "chatglm", "vicuna"),
        samsum_stops="tokenizer",
    ),
    "adakv-2024": Preset(
        replace(_MIDDLE, stops="tokenizer", wrapper="none", bos="added"),
        lengths=(("mistral", 31500),),
        wrappers=(("llama3", "native"), ("llama-3", "native"), ("llama2", "[INST]{prompt}[/INST]")),
    ),
    "pyramidkv-2024": Preset(
        replace(_MIDDLE, stops="tokenizer", wrapper="none", wrap_first=True),
        lengths=(*_PYRAMIDKV_LENGTHS[:2], ("llama3", 7950), ("llama-3", 7950), _PYRAMIDKV_LENGTHS[2]),
        wrappers=(("llama2", "[INST] {prompt} [/INST]"),),
        wraps_all=True,
        newline=False,
        never_empty="all",
        code_backend="indel",
    ),
    "kvcf-2026": Preset(
        replace(_MIDDLE, wrapper="none"),
        lengths=(*_PYRAMIDKV_LENGTHS[:2], ("llama3", 7500), ("llama-3", 7500), _PYRAMIDKV_LENGTHS[2]),
        wrappers=(
            ("llama3", _LLAMA3),
            ("llama-3", _LLAMA3),
            ("llama2", "[INST] {prompt} [/INST]"),
        ),
        early=("llama2",),
        never_empty="all",
        code_backend="indel",
    ),
    "windowkv": Preset(
        replace(_MIDDLE, truncation="middle_ids", wrapper="none", stops="model"),
        lengths=(("llama3", 7950), ("llama-3", 7950), ("qwen2.5-1.5b", 15500), ("qwen25_1.5b", 15500)),
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
