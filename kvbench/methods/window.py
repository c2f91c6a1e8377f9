"""A window of recent tokens, given as a number of tokens or as a share of the budget."""

from __future__ import annotations

from kvbench.methods.fields import InvalidField


def window_tokens(window: int | float, tokens: int) -> int:
    """Return the window in tokens under a budget of `tokens`; a share is rounded down."""
    return int(window * tokens) if isinstance(window, float) else window


def check_window(part: object, field: str = "window") -> None:
    """Raise InvalidField if the field is neither a number of tokens from 0 on nor a share in [0, 1)."""
    value = getattr(part, field)
    if value < 0:
        raise InvalidField(field, value, "must be at least 0")
    if isinstance(value, float) and value >= 1:
        raise InvalidField(field, value, "a share of the budget must lie in [0, 1); tokens are an integer")
