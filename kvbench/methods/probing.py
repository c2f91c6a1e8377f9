"""The contract of probes: forward passes of a method's own, from which scores are made.

Shape suffixes: H query heads, U KV heads, P tokens of a pass, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from kvbench.methods.base import Part
from kvbench.methods.context import LayerContext
from kvbench.methods.model_view import ModelView
from kvbench.methods.prompt_facts import NO_SPANS, Spans


class ProbeRange(NamedTuple):
    """The tokens of the prompt that a pass of a probe is about."""

    begin: int
    end: int


Pass = tuple[list[int], ProbeRange]
"""The token ids of a pass, and the range of the prompt that it is about."""


@runtime_checkable
class Probe(Part, Protocol):
    """Forward passes after the prefill, from which scores are made. They see all keys of the prompt and leave none.

    They run once for a context, for all variants with an equal probe and for all questions. Their time counts for
    these variants alone. Parts with "probed" in their `needs` find the results in `LayerContext.probed[probe]`.
    """

    def passes(self, ids: Sequence[int], model: ModelView, spans: Spans = NO_SPANS) -> list[Pass]:
        """Return the token ids of each pass, and the range of the prompt that it is about.

        Args:
            ids: the prompt, as far as it is compressed.
            spans: begin and end of its named regions, as in `LayerContext.spans`.
        """
        ...

    def observe(
        self, before: Tensor | None, ctx: LayerContext, q_HPD: Tensor, k_UPD: Tensor, about: ProbeRange
    ) -> Tensor:
        """Return what the passes so far observed in a layer, this one included.

        Args:
            before: the result of the passes before; None for the first.
            ctx: keys and values of the prompt. Its queries are freed.
            q_HPD, k_UPD: queries and keys of the P tokens of the pass, after RoPE.
        """
        ...
