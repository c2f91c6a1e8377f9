"""The checks of the values that a part is built with.

A part names its own field. Whoever builds it from a YAML knows which dial feeds that field and says so to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class InvalidField(ValueError):
    """A value that a part cannot work with.

    Args:
        field: name of the part's field.
        value: what it was set to.
        problem: what it must be; "{other}" stands for the field `other` of the same part.
        others: values of the fields that `problem` names.
    """

    def __init__(self, field: str, value: Any, problem: str, **others: Any) -> None:
        self.field, self.value, self.problem, self.others = field, value, problem, others
        super().__init__(self.text(lambda name: name))

    def text(self, dial: Callable[[str], str]) -> str:
        """Return the message for a user, with `dial(field)` in the place of every field's name."""
        named = {name: f"method.{dial(name)}={value}" for name, value in self.others.items()}
        return f"method.{dial(self.field)}={self.value}: {self.problem.format(**named)}"


def check_at_least(part: object, field: str, minimum: int) -> None:
    """Raise InvalidField if the field is below `minimum`."""
    value = getattr(part, field)
    if value < minimum:
        raise InvalidField(field, value, f"must be at least {minimum}")


def check_between(part: object, field: str, minimum: float, maximum: float) -> None:
    """Raise InvalidField if the field is outside of [minimum, maximum]."""
    value = getattr(part, field)
    if value < minimum:
        raise InvalidField(field, value, f"must be at least {minimum}")
    if value > maximum:
        raise InvalidField(field, value, f"must be at most {maximum}")


def check_one_of(part: object, field: str, choices: Sequence[str]) -> None:
    """Raise InvalidField if the field is none of `choices`."""
    value = getattr(part, field)
    if value not in choices:
        raise InvalidField(field, value, f"must be one of {', '.join(choices)}")


ALLOCATIONS = ("exact", "reference")


def check_allocation(part: object) -> None:
    """Raise InvalidField if the part's field `allocation` is neither exact nor reference."""
    check_one_of(part, "allocation", ALLOCATIONS)
