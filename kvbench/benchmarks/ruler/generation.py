"""RULER's samples as upstream writes them (arXiv 2404.06654): the thirteen tasks fitted to a length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvbench.benchmarks.ruler.cwe import CommonWords
from kvbench.benchmarks.ruler.fitting import Draft, Family, Fitter, head_size, linear_size
from kvbench.benchmarks.ruler.fwe import FrequentWords
from kvbench.benchmarks.ruler.niah import Niah, has_one_answer, singular
from kvbench.benchmarks.ruler.qa import Documents
from kvbench.benchmarks.ruler.request import RulerRequest
from kvbench.benchmarks.ruler.tasks import VT_PREFIX_2024, wrapped
from kvbench.benchmarks.ruler.vt import VariableTracking
from kvbench.benchmarks.ruler.vt2024 import VariableTracking2024

VERSION = 1  # raise when the same request gives other rows


def generate(request: RulerRequest) -> list[dict[str, Any]]:
    """Return all samples of a request, as `rows` yields them."""
    return list(rows(request))


def rows(request: RulerRequest) -> Iterator[dict[str, Any]]:
    """Yield samples in upstream's format. With upstream's files they are upstream's, byte for byte.

    A row depends on all rows before it, not on num_samples. No row is longer than the length; only "linear2024" leaves
    no room for the answer of fwe, as upstream. In niah records of "head", "index" is the place of the answer in the
    text: upstream's. Raises ValueError for a length at which a row does not fit.
    """
    draft = _drafts(request, _prompt(request))
    for row in range(request.num_samples):
        yield _record(request, draft(row), row)


def _prompt(request: RulerRequest) -> str:
    task, template = request.spec, request.template
    prefix = VT_PREFIX_2024 if task.name == "vt" and request.is_old else task.answer_prefix
    if task.family.name != "niah" or not has_one_answer(task):
        return wrapped(template, task.template, prefix)
    if request.edit_wrapper:
        return singular(wrapped(template, task.template, prefix))
    return wrapped(template, singular(task.template), singular(prefix))


def _drafts(request: RulerRequest, prompt: str) -> Callable[[int], Draft]:
    """Return the function from a row's number to its draft. Call it for 0, 1, 2, ..., each once."""
    kind, length = request.spec.family.name, request.length
    if kind == "fwe":
        return FrequentWords(request, prompt).row
    family: Family
    first, slack = None, None
    if kind == "niah":
        family = Niah(request, prompt)
    elif kind == "vt":
        family = VariableTracking2024(request, prompt) if request.is_old else VariableTracking(request, prompt)
    elif kind == "cwe":
        words = CommonWords(request, prompt)
        family, first, slack = words, words.first, lambda per_unit: words.slack(length, per_unit)
    else:
        family = Documents(request, prompt)
    size = linear_size(family, length) if request.is_old else head_size(family, length, first, slack)
    return Fitter(family, size, length, request.spec.name).row


def _record(request: RulerRequest, draft: Draft, row: int) -> dict[str, Any]:
    if request.is_old:  # the answer prefix stays inside the input
        return {"index": row, "input": draft.text, "outputs": list(draft.answers), "length": draft.length}
    place = draft.text.rfind(request.spec.answer_prefix[:10])
    text = draft.text[:place]
    record: dict[str, Any] = {
        "index": row,
        "input": text,
        "outputs": list(draft.answers),
        "length": draft.length,
        "length_w_model_temp": draft.length,
        "answer_prefix": draft.text[place:],
    }
    if request.spec.family.name == "niah":
        record["index"] = text.find(draft.answers[0])
        record["token_position_answer"] = request.count(text[: record["index"]])
    return record
