"""Text from elsewhere, made safe to print."""

from __future__ import annotations

import re
import unicodedata

_SETTING = re.compile(r"\b([A-Za-z_][\w.]*)=(None|True|False)\b")
_TYPED = {"None": "null", "True": "true", "False": "false"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (also those that turn the direction), half surrogates


def printable(text: str) -> str:
    """Return `text` with every control character as a backslash escape, but for newlines and tabs.

    A terminal obeys control characters: text from a file could otherwise clear the screen or pretend to be ours.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in "\n\t" or _is_visible(character) else _escape(character) for character in text
    )


def one_line(text: str) -> str:
    """Return `text` in one printable line."""
    return " ".join(line.strip() for line in printable(text).splitlines() if line.strip())


def shortened(value: object) -> str:
    """Return a value as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_typed(text: str) -> str:
    """Return `text` with the values of settings as users type them: budget=null, where Python writes budget=None."""
    return _SETTING.sub(lambda match: f"{match[1]}={_TYPED[match[2]]}", text)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _INVISIBLE


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
