"""One head under a decode policy, one token at a time: a third implementation next to both caches.

Shape suffixes: G query heads per KV head, T new tokens, S slots by ascending position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods.decoding import DecodePolicy, Start
from kvbench.methods.slots import Slots


class Holding:
    """The tokens that a policy keeps in one KV head."""

    def __init__(
        self, policy: DecodePolicy, base: int, kept: list[int], score_S: Tensor, span: int | None = None
    ) -> None:
        self.policy, self.base, self.kept = policy, base, list(kept)
        self.span = kept[-1] + 1 if span is None else span
        self.seen = self.span
        start = Start(0, 1, self.span, torch.tensor([kept]), torch.ones(1, len(kept)).bool(), score_S[None])
        self.state_S = policy.begin(start)[0].float()

    def step(self, attention_GTS: Tensor) -> tuple[list[int], Tensor]:
        """Append the tokens of a step, evict, and return the kept positions and their state."""
        new = attention_GTS.shape[1]
        self.kept += range(self.seen, self.seen + new)
        self.seen += new
        state_S = torch.cat([self.state_S, torch.zeros(new)])
        numbers = (torch.tensor([[n]]) for n in (self.base, self.seen - self.span, self.span))
        base_11, steps_11, span_11 = numbers
        limit = self.policy.limit(base_11, steps_11, 0, span_11)
        slots = Slots(
            torch.tensor([self.span]),
            torch.tensor([self.seen]),
            torch.tensor([[self.kept]]),
            torch.ones(1, 1, len(self.kept)).bool(),
            state_S[None, None],
            limit,
            aligned=True,
        )
        if self.policy.reads != "nothing":
            self.policy.observe(slots, attention_GTS.float()[None, None])
        gone = self.policy.drop(slots)[0, 0]
        if limit is None:
            stay = [i for i, leaves in enumerate(gone.tolist()) if not leaves]
        else:
            count = max(0, len(self.kept) - int(limit))
            worst = sorted(range(len(self.kept)), key=lambda i: (float(gone[i]), -self.kept[i]))[:count]
            stay = [i for i in range(len(self.kept)) if i not in worst]
        self.kept, self.state_S = [self.kept[i] for i in stay], slots.state_BUC[0, 0, stay]
        return self.kept, self.state_S
