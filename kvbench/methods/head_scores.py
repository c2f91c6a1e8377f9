"""Tables of head scores: one JSON object {"layer-head": score or list of scores}, as HeadKV publishes them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from kvbench.common.kinds import is_number
from kvbench.methods.base import Part
from kvbench.methods.fields import InvalidField
from kvbench.methods.files import DialFile, json_object

_KEY = re.compile(r"(\d{1,5})-(\d{1,5})")


@dataclass(frozen=True)
class HeadScores(Part):
    """A part with a table of scores for all query heads of the model.

    Args:
        table: JSON file {"layer-head": [scores]}.

    Raises:
        InvalidField: the file is no such table.
    """

    table: DialFile

    def __post_init__(self) -> None:
        self._read()

    @property
    def head_scores(self) -> tuple[float, ...]:
        """The mean score of every query head, layer by layer."""
        return self._read()[0]

    def check_model(self, *, layers: int, heads: int, query_heads: int) -> None:
        """Raise InvalidField if the table is that of a model of another shape."""
        scores, own_heads = self._read()
        own_layers = len(scores) // own_heads
        if (own_layers, own_heads) != (layers, query_heads):
            text = f"has scores for {own_layers} layers of {own_heads} query heads"
            raise InvalidField("table", self.table, f"{text}, but the model has {layers} layers of {query_heads}")

    def _read(self) -> tuple[tuple[float, ...], int]:
        """Return the mean score of every head, and the heads of a layer."""
        try:
            return read_head_scores(self.table.text)
        except ValueError as error:
            raise InvalidField("table", self.table, f"is no table of head scores ({error})") from None


@lru_cache(maxsize=8)
def read_head_scores(text: str) -> tuple[tuple[float, ...], int]:
    """Return the mean score of every head, layer by layer, and the heads of a layer, from a table in JSON.

    Raises:
        ValueError: the text is no table of head scores.
    """
    content = json_object(text, "scores")
    means: dict[tuple[int, int], float] = {}
    for key, value in content.items():
        match, values = _KEY.fullmatch(key), value if isinstance(value, list) else [value]
        if match is None or not values or not all(map(_is_score, values)):
            raise ValueError(f"{key!r} must be a layer and a head such as '3-17', its value numbers from 0 on")
        means[int(match[1]), int(match[2])] = sum(values) / len(values)
    layers, heads = (max(place) + 1 for place in zip(*means, strict=True))
    if len(means) != layers * heads:
        raise ValueError(f"{len(means)} heads, but {layers} layers of {heads} heads are {layers * heads}")
    if not 0 < sum(means.values()) < math.inf:
        raise ValueError("the scores must have a positive sum")
    return tuple(means[layer, head] for layer in range(layers) for head in range(heads)), heads


def _is_score(value: object) -> bool:
    return is_number(value) and 0 <= value < math.inf
