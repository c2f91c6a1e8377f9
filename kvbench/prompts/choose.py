"""The prompts of commands that look at one prompt: the words of the user, or a sample of a benchmark."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvbench.benchmarks.base import Benchmark, Sample, benchmarks_of
from kvbench.prompts import facts, renderer, span_of
from kvbench.prompts.prompt import Prompt
from kvbench.prompts.strict import render

if TYPE_CHECKING:
    from kvbench.models import ModelSpec

_FORM = 'the number of a prompt (0 for the first), the id of a sample, or a list of them, "show=[0,3]"'
_NEAR = 3  # ids that a message suggests


@dataclass(frozen=True)
class Chosen:
    """A rendered prompt.

    Attributes:
        name: the id of the sample, or what it is.
        span: tokens that are compressed.
        part: the benchmark of the sample, such as one dataset of a suite; "" for the words of the user.
    """

    name: str
    prompt: Prompt
    span: int
    part: str = ""


def wanted_prompts(text: str) -> list[int | str]:
    """Return the numbers and the sample ids of a setting `show=…`: show=3, show=qasper-0007, show=[0,qasper-0007].

    Raises:
        ValueError: neither of them, in one line that shows how to write it.
    """
    from kvbench.config.compose import parse

    if text.isdecimal() and len(text) < 10:  # it may begin with a zero
        return [int(text)]
    override = parse([f"show={text}"])[0]
    if override.is_sweep_override():
        raise ValueError(f'show={text}: several prompts are a list: "show=[{text}]"')
    value = override.value()
    items = value if isinstance(value, list) else [value]
    wanted = [item for item in items if isinstance(item, int | str) and not isinstance(item, bool)]
    wanted = [item for item in wanted if item != "" and (isinstance(item, str) or item >= 0)]
    if not wanted or len(wanted) < len(items):
        raise ValueError(f"show={text}: {_FORM}")
    return wanted


def chosen_prompts(spec: ModelSpec, tokenizer: Any, benchmark: Any, wanted: Sequence[int | str]) -> list[Chosen]:
    """Return samples of a benchmark as a model reads them, in the order of `wanted`.

    Args:
        wanted: numbers (0 is the first) and ids of samples. Parts of a suite may share an id: all of its samples come.

    Raises:
        ValueError: there is no such sample; the message names near ids.
    """
    matches: dict[int | str, list[Chosen]] = {key: [] for key in wanted}
    parts = [(part, _may_hold(part, matches)) for part in benchmarks_of(benchmark, facts(spec))]
    if not any(isinstance(key, int) for key in matches):  # numbers count all samples in their order
        parts.sort(key=lambda each: not each[1])
    seen: list[str] = []
    for part, is_likely in parts:
        if all(matches.values()) and not is_likely:
            continue  # the samples of some benchmarks take minutes to generate
        for sample in part.samples(tokenizer):
            here: set[int | str] = {len(seen), sample.id}
            for key in here & matches.keys():
                prompt = renderer(spec, tokenizer, part)(sample)
                span = prompt.context_len if span_of(part) == "context" else len(prompt.ids)
                matches[key].append(Chosen(sample.id, prompt, span, part.name))
            seen.append(sample.id)
    for key in matches:
        if not matches[key]:
            raise ValueError(_missing(key, seen))
    return [chosen for key in wanted for chosen in matches[key]]


def _may_hold(part: Benchmark, wanted: Iterable[int | str]) -> bool:
    """Return True if an id begins with the name of the part in its suite, as those of published datasets do."""
    column = getattr(part, "column", None)
    return column is not None and any(str(key).startswith(column.name) for key in wanted)


def chosen_prompt(spec: ModelSpec, tokenizer: Any, benchmark: Any, wanted: int | str) -> Chosen:
    """Return one sample of a benchmark, by its number or its id.

    Raises:
        ValueError: there is no such sample, or several parts of a suite have one.
    """
    chosen = chosen_prompts(spec, tokenizer, benchmark, [wanted])
    if len(chosen) > 1:
        parts = ", ".join(each.part for each in chosen)
        raise ValueError(f"show={wanted}: a sample of {parts}; give the number of one of them, as in show=0")
    return chosen[0]


def _missing(wanted: int | str, ids: Sequence[str]) -> str:
    """Return the complaint about a sample that there is not."""
    if not ids:
        return f"show={wanted}: this benchmark has no prompts"
    if isinstance(wanted, int):
        return f"show={wanted}: this benchmark has {len(ids)} prompts, the first is 0"
    known = list(dict.fromkeys(ids))
    near = [name for name in known if name.startswith(wanted)][:_NEAR]
    near = near or difflib.get_close_matches(wanted, known, n=_NEAR, cutoff=0.6)
    words = f"near: {', '.join(f'show={name}' for name in near)}" if near else f"its ids are {known[0]} to {known[-1]}"
    return f"show={wanted}: this benchmark has no such sample; {words}; or a number, show=0 to show={len(ids) - 1}"


def text_prompt(spec: ModelSpec, tokenizer: Any, text: str) -> Chosen:
    """Return a text as a model reads it: in its chat template, unless `model.chat_template=never`."""
    from kvbench import models

    sample = Sample("prompt", text, "", "", (), 1)
    limit = models.max_length(spec)
    chat: dict[str, Any] = {"chat_template": spec.chat_template, "chat_kwargs": spec.chat_kwargs}
    prompt = render(tokenizer, sample, max_length=limit, eos_ids=models.end_ids(spec, tokenizer).all, **chat)
    return Chosen("prompt", prompt, len(prompt.ids))
