"""Chat templates that fail, loop, write too much, or write today's date."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from kvbench import prompts
from kvbench.encoding import frame, rendered, template
from tests.helpers.tokenizers_for_tests import CHATML, tiny_tokenizer

USER = [{"role": "user", "content": "a"}]
NEVER_ENDS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('no system role') }}",
        "{{ undefined_thing.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages[5]['content'] }}",
        "{% if %}",
        "{{ 'a' | nosuchfilter }}",
        "{{ 'a' + 5 }}",
        "{% for m in 5 %}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% include 'other' %}",
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__bases__ }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'a' * 100000000000 }}",
        "{% for i in range(100) %}{{ 'a' * 100000 }}{% endfor %}",
        "a" * 2_000_000,
    ],
)
def test_every_failure_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.chat_template: .*model\.chat_template=never") as error:
        rendered(tiny_tokenizer(text), USER, {})
        raise ValueError(f"model.chat_template: {text} was rendered, model.chat_template=never")
    assert "\n" not in str(error.value) and "was rendered" not in str(error.value) and len(str(error.value)) < 500


def test_a_template_that_loops_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^model\.chat_template: the template did not end within 0\.5 seconds; "):
        rendered(tiny_tokenizer(NEVER_ENDS), USER, {})
    assert time.monotonic() - start < 60


def test_a_template_that_fails_only_on_the_assistants_turn_is_one_line() -> None:
    text = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match=r"^model\.chat_template: the template cannot be rendered \(no\)"):
        frame(tiny_tokenizer(text + "{% endif %}{% endfor %}"), {})


def test_several_templates_and_no_default_name_the_override() -> None:
    tokenizer = tiny_tokenizer({"rag": CHATML, "tool_use": CHATML})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"\(rag, tool_use\) and none called default; .*\+model\.chat_kwargs\.chat_temp"
    ):
        rendered(tokenizer, USER, {})
    assert rendered(tokenizer, USER, {"chat_template": "rag"}).startswith("<|im_start|>user")


# ---- the frame in the identity ---------------------------------------------------------------------

DATED = "Today: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
DATED += "{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}"


def test_a_frame_with_the_date_is_recognised() -> None:
    assert frame(tiny_tokenizer(DATED), {})[1] is True
    text, is_dated = frame(tiny_tokenizer(DATED), {"date_string": "26 Jul 2024"})
    assert not is_dated and "Today: 26 Jul 2024" in text
    assert frame(tiny_tokenizer(CHATML), {})[1] is False


def test_the_identity_covers_the_frame_and_the_console_names_the_date_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compose: Any
) -> None:
    from kvbench import models
    from kvbench.run.jobs import prepare

    text = [CHATML]
    monkeypatch.setattr(models, "load_tokenizer", lambda spec: tiny_tokenizer(text[0]))

    def identity(*overrides: str) -> str | None:
        prompts._frames.clear()
        (job,) = prepare(compose("model=tiny", "benchmark=needle", "method=fullkv", *overrides))
        frame_hash: str | None = job.identity["protocol"]["frame"]
        return frame_hash

    first = identity()
    assert first is not None and re.fullmatch(r"[0-9a-f]{16}", first) and "today's date" not in caplog.text
    assert identity("model.chat_template=never") is None
    text[0] = DATED
    assert identity() != first
    assert caplog.text.count("writes today's date") == 1 and "model.chat_kwargs.date_string=" in caplog.text
    fixed = identity("+model.chat_kwargs.date_string='26 Jul 2024'")
    assert fixed != identity("+model.chat_kwargs.date_string='27 Jul 2024'")
    assert caplog.text.count("writes today's date") == 1
