"""The 13 tasks of RULER (arXiv 2404.06654) and the wrappers around them.

Prompt templates, answer prefixes and wrappers are constants of the protocol: taken from NVIDIA/RULER c3f5e3b4
(Apache-2.0), as a score only means something with the words of the paper.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvbench.metrics.ruler import METRICS

NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DOCUMENT = "Document {i}:\n{document}"


@dataclass(frozen=True)
class Family:
    """The common part of tasks of one kind: prompt, start of the answer, and the longest answer in tokens."""

    name: str
    template: str
    answer_prefix: str
    tokens_to_generate: int


@dataclass(frozen=True)
class Task:
    """One column of RULER: a family with its arguments. metric: "string_match_all" or "string_match_part"."""

    name: str
    family: Family
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The name of the metric, as upstream calls it."""
        return METRICS[self.name]

    @property
    def tokens_to_generate(self) -> int:
        """Longest answer; part of the length a sample is fitted to."""
        return self.family.tokens_to_generate

    @property
    def answer_prefix(self) -> str:
        """The start of the answer, which is part of the prompt."""
        return self.family.answer_prefix

    @property
    def template(self) -> str:
        """The prompt without wrapper and answer prefix."""
        return self.family.template


NIAH = Family(
    "niah",
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?",
    " The special magic {type_needle_v} for {query} mentioned in the provided text are",
    128,
)
VT = Family(
    "vt",
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{num_v} variables are assigned the value {query}, they are: ",
    30,
)
CWE = Family(
    "cwe",
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
    120,
)
FWE = Family(
    "fwe",
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
    50,
)
QA = Family(
    "qa",
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\n"
    "Question: {query}",
    " Answer:",
    32,
)
# Files made before 2025 spell a word wrong, which is part of their prompt; spelt so that a spell checker lets it pass.
VT_PREFIX_2024 = VT.answer_prefix.replace("signed", "sgined")


def _niah(name: str, haystack: str, key: str, value: str, k: int, v: int, q: int) -> Task:
    args = {"haystack": haystack, "key": key, "value": value, "keys": k, "values": v, "queries": q}
    return Task(name, NIAH, args)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _niah("niah_single_1", "noise", "words", "numbers", 1, 1, 1),
        _niah("niah_single_2", "essay", "words", "numbers", 1, 1, 1),
        _niah("niah_single_3", "essay", "words", "uuids", 1, 1, 1),
        _niah("niah_multikey_1", "essay", "words", "numbers", 4, 1, 1),
        _niah("niah_multikey_2", "needle", "words", "numbers", 1, 1, 1),
        _niah("niah_multikey_3", "needle", "uuids", "uuids", 1, 1, 1),
        _niah("niah_multivalue", "essay", "words", "numbers", 1, 4, 1),
        _niah("niah_multiquery", "essay", "words", "numbers", 1, 1, 4),
        Task("vt", VT, {"chains": 1, "hops": 4}),
        Task("cwe", CWE, {"freq_cw": 30, "freq_ucw": 3, "num_cw": 10}),
        Task("fwe", FWE, {"alpha": 2.0}),
        Task("qa_1", QA, {"dataset": "squad"}),
        Task("qa_2", QA, {"dataset": "hotpotqa"}),
    )
}

TEMPLATES: dict[str, str] = {
    "base": "{task_template}",
    "meta-chat": "[INST] {task_template} [/INST]",
    "vicuna-chat": "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: {task_template} ASSISTANT:",
    "lwm-chat": "You are a helpful assistant. USER: {task_template} ASSISTANT: ",
    "command-r-chat": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{task_template}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "chatglm-chat": "[gMASK]sop<|user|> \n {task_template}<|assistant|> \n ",
    "RWKV": "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it\n\nUser: {task_template}\n\nAssistant:",
    "Phi3": "<|user|>\n{task_template}<|end|>\n<|assistant|>\n",
    "meta-llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{task_template}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "jamba": "<|startoftext|><|bom|><|system|> <|eom|><|bom|><|user|> {task_template}<|eom|><|bom|><|assistant|>",
    "nemotron5-instruct": "<SPECIAL_10>System\n\n<SPECIAL_11>User\n{task_template}\n<SPECIAL_11>Assistant\n",
}


def find_task(name: str) -> Task:
    """Return the task of that name. Raises ValueError for an unknown name."""
    if name not in TASKS:
        raise ValueError(f"benchmark.tasks=[{name}]: no such task; RULER has {', '.join(TASKS)}")
    return TASKS[name]


def wrapped(template: str, body: str, prefix: str) -> str:
    """Return a whole prompt: the wrapper around a task's own template `body`, then the answer prefix.

    template: a name in TEMPLATES, or a text that holds {task_template}; {{ and }} in it stand for braces. The prefix
    follows the wrapper: it starts the assistant's turn. Raises ValueError for a wrapper with no place for the task, or
    with another one.
    """
    wrapper = TEMPLATES.get(template, template)
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(wrapper) if name is not None]
    except ValueError:
        fields = []
    if fields != ["task_template"]:
        raise ValueError(
            f"benchmark.wrapper={template!r}: one of {', '.join(TEMPLATES)}, or a text with {{task_template}} once"
        )
    return wrapper.replace("{task_template}", body) + prefix
