"""The places where two question-agnostic code bases cut LongBench's prompts, derived from upstream's templates.

Both compress what comes first and leave the question alone, but they draw the line in different places, so different
instructions end up in the compressed part. This file holds only rules; the words come from dataset2prompt.json. The one
exception are the cues with which three few-shot datasets end their `input`: they are not part of any template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NAMES = ("kvpress", "ffy0")
_CUES = {"trec": "Type:", "triviaqa": "Answer:", "samsum": "Summary:"}


def kvpress(prompts: Mapping[str, str]) -> dict[str, Any]:
    """Return kvpress's cut: the question begins at the last line with {input}, a repeated instruction before it stays.

    The last line of a template is the answer prefix. `input` is written without its cue, which the prefix repeats;
    the inputs of triviaqa and samsum end in white space, so their cue stays, and occurs twice.
    """
    before: dict[str, str] = {}
    question: dict[str, str] = {}
    prefix: dict[str, str] = {}
    for name, template in prompts.items():
        start = _context_end(template)
        if "{input}" in template:
            start = max(start, template.rfind("\n", 0, template.rindex("{input}")) + 1)
        # the answer prefix: the last line, or what follows the last placeholder in it
        end = max(template.rfind("\n", 0, len(template.rstrip())) + 1, template.rindex("}") + 1, start)
        before[name], question[name] = template[:start], template[start:end]
        cue = template[end:] or _CUES.get(name, "")
        if cue:
            prefix[name] = cue
    if "lcc" in question:
        question["lcc"] = "{input}"  # always empty there
    whole = {name: before[name] + question[name] + prefix.get(name, "") for name in prompts}
    return {
        "context_prefix": before,
        "question_template": question,
        "answer_prefix": prefix,
        "_notes": {"input_suffix_removed": {name: cue for name, cue in _CUES.items() if name in prompts}},
        "_concatenation_equals_upstream_template": {name: whole[name] == prompts[name] for name in prompts},
    }


def ffy0(prompts: Mapping[str, str]) -> dict[str, Any]:
    """Return the cut of Ada-KV's authors (FFY0/DefensiveKV): all that follows the context is the question.

    A space that begins the question, as in qasper, is lost there.
    """
    ends = {name: _context_end(template) for name, template in prompts.items()}
    before = {name: template[: ends[name]] for name, template in prompts.items()}
    question = {name: template[ends[name] :].lstrip(" ") for name, template in prompts.items()}
    return {
        "context_prompt": before,
        "question_prompt": question,
        "_concatenation_equals_upstream_template": {
            name: before[name] + question[name] == prompts[name] for name in prompts
        },
    }


def _context_end(template: str) -> int:
    """Return where the context ends, with the line breaks after it."""
    match = re.search(r"\{context\}\n*", template)
    assert match, "checked when the templates were read"
    return match.end()
