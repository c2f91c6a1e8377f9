"""The best candidates of every KV head, after a chat template that stays as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from kvbench.methods.base import Protected
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.select.top_k import TopK


@dataclass(frozen=True)
class TopKAfterTemplate(TopK):
    """`TopK`, which also keeps all that the chat template writes before the text.

    Args:
        template: tokens of that part of the template; of each prompt, once it is known.
    """

    template: int = 0

    @property
    def reason(self) -> str:
        """The chat template, where it is longer than the sinks."""
        return "its chat template" if self.template > self.sinks else super().reason

    def protected(self, tokens: int) -> Protected:
        """Return the tokens that are always kept under a budget of `tokens` per KV head."""
        return super().protected(tokens)._replace(sinks=max(self.sinks, self.template))

    def with_template(self, tokens: int) -> Self:
        """Return the selection for prompts with such a template."""
        return self if tokens == self.template else replace(self, template=tokens)

    def for_prompt(self, facts: PromptFacts) -> Self:
        """Return the selection with the template of a prompt."""
        return self.with_template(facts.spans.get("template", (0, 0))[1])
