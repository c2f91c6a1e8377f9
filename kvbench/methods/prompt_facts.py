"""The facts about a prompt that all of its layers share.

Shape suffixes: T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from kvbench.methods.model_view import ModelView

Spans = Mapping[str, tuple[int, int]]
NO_SPANS: Spans = MappingProxyType({})


@dataclass(frozen=True)
class PromptFacts:
    """The facts about a prompt that all of its layers share.

    Attributes:
        token_ids: [T] ids of the compressed span; None where no part asks for them.
        spans: {name: (begin, end)} of regions of the prompt, cut to the span: "template", what the chat template writes
            before the text, "context" with it, and "question".
        model: a view of the model; None where no part asks for it.
        seed: seed of the run and the sample, for `LayerContext.generator`.
        task: the kind of task that the prompt sets, one of `kvbench.common.tasks.TASKS`; None if nobody says.
    """

    token_ids: Tensor | None = None
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    model: ModelView | None = None
    seed: int = 0
    task: str | None = None
