"""The parts of a method, put together as plain data, and the properties that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self

from kvbench.methods.base import Merge, Part, Score
from kvbench.methods.budgets import ByteShare
from kvbench.methods.decoding import Decoding, Feed
from kvbench.methods.dials import EVICTING
from kvbench.methods.eviction import Eviction
from kvbench.methods.looking import Look
from kvbench.methods.probing import Probe
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.storage import Store


@dataclass(frozen=True)
class Parts:
    """The parts of a compression method, as conf/method/<name>.yaml names them.

    Attributes:
        dials: what the user may set, as in the YAML.
        eviction: which tokens of the prompt stay; None for a method that keeps all of them.
        probe: forward passes of the method's own, before anything is scored; None for none.
        merge: how kept keys and values take up something of the dropped ones; None for not at all.
        store: the form in which kept tokens are held; None for plain keys and values.
        decode: what leaves the cache while generating, and when; None for nothing.
        look: which tokens a decode step reads; None for all that are kept.
        feed: the chunks in which the prompt goes through the decode path; None for the shared prefill.
        dial_of: (part, field of it) -> the dial that feeds the field, for messages.
    """

    name: str
    dials: Mapping[str, Any] = field(default_factory=dict, hash=False)
    eviction: Eviction | None = None
    probe: Probe | None = None
    merge: Merge | None = None
    store: Store | None = None
    decode: Decoding | None = None
    look: Look | None = None
    feed: Feed | None = None
    dial_of: Mapping[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def named_parts(self) -> dict[str, object]:
        """The parts that this method has, by their names in the YAML."""
        evicting = {} if self.eviction is None else vars(self.eviction)
        policy = None if self.decode is None else self.decode.policy
        parts = {
            **evicting,
            "probe": self.probe,
            "merge": self.merge,
            "feed": self.feed,
            "store": self.store,
            "decode": policy,
            "look": self.look,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def parts(self) -> tuple[object, ...]:
        """The parts that this method has."""
        return tuple(self.named_parts.values())

    @property
    def needs(self) -> frozenset[str]:
        """The fields of a layer's context that some part reads; see `kvbench.methods.base.NEEDS`."""
        return frozenset[str]().union(*(part.needs for part in self.parts if isinstance(part, Part)))

    @property
    def draws(self) -> bool:
        """True if a part that is in use, or a part within it, draws random numbers by the seed of the run."""
        policy = None if self.decoding is None else self.decoding.policy
        return any(map(_draws, (self.eviction, self.probe, self.merge, self.store, self.look, self.feed, policy)))

    @property
    def evicts(self) -> bool:
        """True if the method drops tokens of the prompt."""
        return self.eviction is not None

    @property
    def promises(self) -> Literal["kept", "read"] | None:
        """The meaning of a budget to this method; None if it takes no budget.

        "kept": the kept tokens add up to the budget. "read": as many tokens are read in every step. Without a budget
        everything is kept, or the method decides by itself how much; what it kept is measured and reported. A budget in
        bytes may apply even so, see `takes`.
        """
        if self.look is not None:
            return "read"
        return "kept" if self.eviction is not None and self.eviction.counted else None

    @property
    def decoding(self) -> Decoding | None:
        """The decode policy, with its dials, of rows that generate; None if nothing leaves while generating."""
        return None if self.decode is None or self.decode.phase == "prefill" else self.decode

    @property
    def keeps_prompt(self) -> bool:
        """True if the whole prompt is kept: it is cut when decoding begins, or a step reads part of it."""
        return self.look is not None or (self.decode is not None and self.decode.phase == "decode")

    @property
    def fits_forms(self) -> bool:
        """True if every token stays, and a budget in bytes chooses the forms in which the layers hold them."""
        return self.store is not None and self.store.has_family and not self.evicts

    def takes(self, budget: object) -> bool:
        """Return True if a budget of this kind applies to the method."""
        return self.promises is not None or (self.fits_forms and isinstance(budget, ByteShare))

    @property
    def exact(self) -> bool:
        """True if the kept tokens add up to the budget; False if they add up to a reference's rounding of it."""
        return self.eviction is None or self.eviction.exact

    @property
    def needs_statistics(self) -> bool:
        """True if layer budgets depend on the scores of all layers. K and V then wait for the prefill's end."""
        layers = None if self.eviction is None else self.eviction.layers
        return layers is not None and layers.needs_statistics

    @property
    def waits(self) -> bool:
        """True if keys and values of all layers wait for the prefill's end, before tokens are chosen."""
        return self.needs_statistics or self.probe is not None

    @property
    def queries(self) -> int:
        """Queries whose attention to all tokens a part holds at once; for the memory estimate."""
        of_parts = [part.queries_at_once for part in self.parts if isinstance(part, Part)]
        return max([*(score.queries for score in self.all_scores), *of_parts], default=0)

    @property
    def all_scores(self) -> tuple[Score, ...]:
        """All scores that the method reads of a layer, its own first."""
        own = () if self.eviction is None else self.eviction.scores
        start = None if self.decoding is None else self.decoding.policy.score
        return (*own, *(() if self.merge is None else self.merge.scores), *(() if start is None else (start,)))

    def chosen(self, facts: PromptFacts) -> dict[str, str]:
        """Return what the parts chose by a prompt, for its record."""
        every = [part.chosen(facts) for part in self.parts if isinstance(part, Part)]
        return {name: choice for of_part in every for name, choice in of_part.items()}

    def for_prompt(self, facts: PromptFacts) -> Self:
        """Return the method with which a prompt is compressed: its parts have chosen the fields that depend on it.

        Raises:
            ValueError: a part lacks a fact that it chooses by.
        """
        own = {name: part.for_prompt(facts) for name, part in self.named_parts.items() if isinstance(part, Part)}
        changed: dict[str, Any] = {name: part for name, part in own.items() if part is not self.named_parts[name]}
        if not changed:
            return self
        evicting = {name: changed.pop(name) for name in EVICTING if name in changed}
        if evicting:
            changed["eviction"] = replace(self.evicting, **evicting)
        if "decode" in changed:
            assert self.decode is not None
            changed["decode"] = replace(self.decode, policy=changed["decode"])
        return replace(self, **changed)

    def with_template(self, tokens: int) -> Self:
        """Return the method for prompts of which a chat template writes the first `tokens`."""
        select = None if self.eviction is None else self.eviction.select.with_template(tokens)
        if select is None or select is self.evicting.select:
            return self
        return replace(self, eviction=replace(self.evicting, select=select))

    @property
    def evicting(self) -> Eviction:
        """The eviction of a method that has one."""
        assert self.eviction is not None, f"{self.name} keeps every token"
        return self.eviction


def _draws(node: object) -> bool:
    """Return True if a part says that it draws random numbers, or holds one that does."""
    if getattr(node, "draws", False):
        return True
    if isinstance(node, list | tuple):
        return any(map(_draws, node))
    return is_dataclass(node) and any(_draws(getattr(node, entry.name)) for entry in fields(node))
