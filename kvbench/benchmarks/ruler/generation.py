"""RULER's samples as upstream writes them (arXiv 2404.06654): the thirteen tasks fitted to a length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvbench.benchmarks.ruler.counting import Counter, counter
from kvbench.benchmarks.ruler.cwe import CommonWords
from kvbench.benchmarks.ruler.fitting import Draft, Family, Fitter, head_size, linear_size
from kvbench.benchmarks.ruler.fwe import FrequentWords
from kvbench.benchmarks.ruler.niah import Niah, has_one_answer, singular
from kvbench.benchmarks.ruler.qa import Documents
from kvbench.benchmarks.ruler.sources import Sources
from kvbench.benchmarks.ruler.tasks import VT_PREFIX_2024, Task, find_task, wrapped
from kvbench.benchmarks.ruler.vt import VariableTracking
from kvbench.benchmarks.ruler.vt2024 import VariableTracking2024

VERSION = 1  # raise when the same arguments give other rows
FITS = ("head", "linear2024")


def generate(
    task: str,
    length: int,
    tokenizer: Any,
    *,
    num_samples: int = 500,
    seed: int = 42,
    sources: Sources | str | Path | None = None,
    template: str = "base",
    edit_wrapper: bool = True,
    fit: str = "head",
    start: int = 0,
) -> list[dict[str, Any]]:
    """All samples of a task, as `rows` yields them."""
    return list(
        rows(
            task,
            length,
            tokenizer,
            num_samples=num_samples,
            seed=seed,
            sources=sources,
            template=template,
            edit_wrapper=edit_wrapper,
            fit=fit,
            start=start,
        )
    )


def rows(
    task: str,
    length: int,
    tokenizer: Any,
    *,
    num_samples: int = 500,
    seed: int = 42,
    sources: Sources | str | Path | None = None,
    template: str = "base",
    edit_wrapper: bool = True,
    fit: str = "head",
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """Samples in upstream's format, one after the other. With upstream's files they are upstream's, byte for byte.

    task: a name in TASKS. length: tokens of prompt, answer prefix and answer. tokenizer: what `counting.counter` takes.
    sources: None for the prepared or else the embedded ones, a folder, or Sources. template: a name in
    `tasks.TEMPLATES`, or a text with {task_template}. edit_wrapper: True as upstream, whose niah tasks with one answer
    put the words of the wrapper into the singular too ("You is a helpful ..."); False leaves them. fit: "head" is the
    generator of NVIDIA/RULER c3f5e3b4 (binary search), "linear2024" the one before June 2025. start: samples that
    earlier chunks made; only qa tasks look at it, whose row i asks question start + i. Upstream's chunk i also takes
    seed 42 + i.

    A row depends on all rows before it, not on num_samples. No row is longer than `length`; only "linear2024" leaves no
    room for the answer of fwe, as upstream. In niah records of "head", "index" is the place of the answer in the text:
    upstream's. Raises ValueError for a length at which a row does not fit, and for arguments that do not exist.
    """
    found = find_task(task)
    _check(length=length, num_samples=num_samples, start=start, fit=fit)
    texts = sources if isinstance(sources, Sources) else Sources.load(sources)
    count = counter(tokenizer)
    prompt = _prompt(found, template, edit_wrapper, fit)
    draft = _drafts(found, prompt, length, count, seed, texts, fit, start, num_samples)
    for row in range(num_samples):
        yield _record(found, draft(row), row, count, fit)


def _check(*, length: int, num_samples: int, start: int, fit: str) -> None:
    if length < 1:
        raise ValueError(f"benchmark.lengths=[{length}]: lengths are numbers of tokens, 1 or more")
    if num_samples < 1 or start < 0:
        raise ValueError(f"benchmark.samples={num_samples}: 1 or more, from start={start}, which is 0 or more")
    if fit not in FITS:
        raise ValueError(f"benchmark.protocol={fit}: one of {', '.join(FITS)}")


def _prompt(task: Task, template: str, edit_wrapper: bool, fit: str) -> str:
    prefix = VT_PREFIX_2024 if task.name == "vt" and fit == "linear2024" else task.answer_prefix
    if task.family.name != "niah" or not has_one_answer(task):
        return wrapped(template, task.template, prefix)
    if edit_wrapper:
        return singular(wrapped(template, task.template, prefix))
    return wrapped(template, singular(task.template), singular(prefix))


def _drafts(
    task: Task,
    prompt: str,
    length: int,
    count: Counter,
    seed: int,
    sources: Sources,
    fit: str,
    start: int,
    num_samples: int,
) -> Any:
    """The function row -> Draft. It is to be called for 0, 1, 2, ..., each once."""
    old = fit == "linear2024"
    kind = task.family.name
    if kind == "fwe":
        return FrequentWords(task, prompt, length, seed, count, year2024=old).row
    family: Family
    first, slack = None, None
    if kind == "niah":
        family = Niah(task, prompt, length, seed, count, sources, measure_answers=old)
    elif kind == "vt":
        arguments = task, prompt, length, seed, count
        family = VariableTracking2024(*arguments) if old else VariableTracking(*arguments)
    elif kind == "cwe":
        words = CommonWords(task, prompt, length, seed, count, sources, year2024=old)
        family, first, slack = words, words.first, lambda per_unit: words.slack(length, per_unit)
    else:
        questions = sources.questions(task.args["dataset"])
        there = len(questions.questions)
        if start + num_samples > there:
            raise ValueError(f"benchmark.samples={num_samples}: {task.name} has {there} questions, from {start} on")
        family = Documents(task, prompt, seed, count, questions, start, year2024=old)
    size = linear_size(family, length) if old else head_size(family, length, first, slack)
    return Fitter(family, size, length, task.name).row


def _record(task: Task, draft: Draft, row: int, count: Counter, fit: str) -> dict[str, Any]:
    if fit == "linear2024":  # the answer prefix stays inside the input
        return {"index": row, "input": draft.text, "outputs": list(draft.answers), "length": draft.length}
    place = draft.text.rfind(task.answer_prefix[:10])
    text = draft.text[:place]
    record: dict[str, Any] = {
        "index": row,
        "input": text,
        "outputs": list(draft.answers),
        "length": draft.length,
        "length_w_model_temp": draft.length,
        "answer_prefix": draft.text[place:],
    }
    if task.family.name == "niah":
        record["index"] = text.find(draft.answers[0])
        record["token_position_answer"] = count(text[: record["index"]])
    return record
