"""The reference answers of a sample are a list of strings."""

from __future__ import annotations


def check_answers(answers: object) -> None:
    """Raise ValueError for one string in the place of a list: each of its letters would be an answer."""
    if isinstance(answers, str):
        raise ValueError(f"answers: give a list of strings such as [{answers!r}], not one string")
