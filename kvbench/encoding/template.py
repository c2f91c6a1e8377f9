"""Chat templates: rendered in one place, so that a template that fails, loops or depends on the date is caught there.

A template is a program that comes with a model. It is rendered in a thread with a time limit, its size and that of its
output are limited, and today's date is the same for the whole life of the process.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

PLACEHOLDER = "kvbenchplaceholder"  # letters only: survives trimming and is in no template
SECONDS = 10.0  # for one rendering; real templates take milliseconds
_LARGEST = 1_000_000  # characters of a template, and of what it writes in addition to the messages
_HUGE = 10_000_000  # a number in a template from which on its text would not fit into memory
_STARTED = datetime.now()  # the date of all prompts of this process
_TODAY = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")

Turns = Sequence[Mapping[str, str]]


def has_template(tokenizer: Any, policy: str) -> bool:
    """Return True if the tokenizer's chat template is used under model.chat_template=`policy`. Raises ValueError."""
    if policy not in ("auto", "never", "always"):
        raise ValueError(f"model.chat_template={policy}: choose auto, never or always")
    if policy == "always" and not tokenizer.chat_template:
        raise ValueError("model.chat_template=always: this tokenizer has no chat template; use auto or never")
    return policy != "never" and bool(tokenizer.chat_template)


def around_user(tokenizer: Any, kwargs: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the template writes before and after the words of a single user turn. Raises ValueError."""
    text = rendered(tokenizer, [{"role": "user", "content": PLACEHOLDER}], kwargs)
    if text.count(PLACEHOLDER) != 1:
        raise ValueError("model.chat_template: the template must write the user turn exactly once")
    prefix, _, suffix = text.partition(PLACEHOLDER)
    return prefix, suffix


def after_assistant(tokenizer: Any, kwargs: Mapping[str, Any]) -> str:
    """Return what the template writes after an assistant's words: the end of the turn. Raises ValueError."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PLACEHOLDER}]
    return rendered(tokenizer, turns, kwargs, answer_follows=False).rpartition(PLACEHOLDER)[2]


def frame(tokenizer: Any, kwargs: Mapping[str, Any]) -> tuple[str, bool]:
    """Return all that the template writes around words, and True if it depends on today's date. Raises ValueError."""
    other_day = {**kwargs, "chat_template": _with_date(_chosen(tokenizer, kwargs), datetime(1970, 1, 1))}
    texts = [
        "\0".join([*around_user(tokenizer, given), after_assistant(tokenizer, given)]) for given in (kwargs, other_day)
    ]
    return texts[0], texts[0] != texts[1]


def rendered(tokenizer: Any, turns: Turns, kwargs: Mapping[str, Any], *, answer_follows: bool = True) -> str:
    """Return the text of a conversation. kwargs: model.chat_kwargs. answer_follows: open the assistant's turn.

    Raises ValueError, in one line, for a template that fails, takes more than `SECONDS`, or writes far too much.
    """
    template = _with_date(_chosen(tokenizer, kwargs), _STARTED)
    _check(template)
    given = {**kwargs, "chat_template": template}
    outcome: list[Any] = []

    def render() -> None:
        try:
            outcome.append(
                tokenizer.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=answer_follows, **given
                )
            )
        except SystemExit:  # the time is over, see below
            return
        except Exception as error:  # a template can raise anything: Jinja's own errors, TypeError, RecursionError
            outcome.append(error)

    thread = threading.Thread(target=render, daemon=True)  # an endless one does not keep the process alive
    thread.start()
    thread.join(SECONDS)
    if not outcome:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise ValueError(f"model.chat_template: the template did not end within {SECONDS:g} seconds; {_REMEDY}")
    if isinstance(outcome[0], Exception):
        reason = " ".join(str(outcome[0]).split())[:200] or type(outcome[0]).__name__
        raise ValueError(f"model.chat_template: the template cannot be rendered ({reason}); {_REMEDY}") from None
    text = str(outcome[0])
    if len(text) > _LARGEST + 2 * sum(len(turn["content"]) for turn in turns):
        raise ValueError(f"model.chat_template: the template writes {len(text)} characters; {_REMEDY}")
    return text


_REMEDY = "mend the tokenizer's template, or set model.chat_template=never"


def _chosen(tokenizer: Any, kwargs: Mapping[str, Any]) -> str:
    """Return the text of the template. Raises ValueError where there are several and none is chosen."""
    template, chosen = tokenizer.chat_template, kwargs.get("chat_template", "default")
    if not isinstance(template, Mapping):
        return str(kwargs.get("chat_template", template))
    if chosen not in template:
        if "{" in str(chosen):  # a template itself
            return str(chosen)
        names = sorted(map(str, template))
        raise ValueError(
            f"model.chat_kwargs: the tokenizer has several chat templates ({', '.join(names)}) and none called "
            f"{chosen}; choose one with +model.chat_kwargs.chat_template={names[0]}"
        )
    return str(template[chosen])


def _with_date(template: str, moment: datetime) -> str:
    """Return a template with a fixed date in place of its calls of `strftime_now`."""
    return _TODAY.sub(lambda call: repr(moment.strftime(call[2])), template)


@lru_cache(maxsize=16)
def _check(template: str) -> None:
    """Raise ValueError for a template that must not be rendered."""
    if len(template) > _LARGEST:
        raise ValueError(f"model.chat_template: the template has {len(template)} characters; {_REMEDY}")
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (TemplateSyntaxError, RecursionError):
        return  # also a template with tags of transformers' own; rendering it says what is wrong
    numbers = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, (int, float))]
    if any(abs(number) >= _HUGE for number in numbers) or any(tree.find_all(nodes.Pow)):
        raise ValueError(f"model.chat_template: the template computes with numbers beyond {_HUGE}; {_REMEDY}")
