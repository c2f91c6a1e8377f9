"""Variable tracking: a chain of assignments among noise, with one worked example before the text."""

from __future__ import annotations

import random
import string
from itertools import pairwise

import numpy as np

from kvbench.benchmarks.ruler.fitting import Draft, Fitter, head_size
from kvbench.benchmarks.ruler.request import RulerRequest
from kvbench.benchmarks.ruler.tasks import NOISE, Task

EXAMPLE_LENGTH = 500
EXAMPLE_VALUE = "12345"


def draw_names(rng: random.Random, number: int, letters: int) -> list[str]:
    """Draw different names of capitals. A repetition, at which upstream's generator fails, is left out."""
    names = [_name(rng, letters) for _ in range(number)]
    while len(set(names)) < number:
        names.append(_name(rng, letters))
    return list(dict.fromkeys(names))


def _name(rng: random.Random, letters: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=letters))


def chain_of(names: list[str], value: str) -> list[str]:
    """Return the assignments: the first name gets the value, every other name its predecessor, with trailing spaces."""
    return [f"VAR {names[0]} = {value}"] + [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]


def insert_chain(rng: random.Random, lines: list[str], chain: list[str]) -> None:
    """Put the statements in their order in front of different lines of the original text."""
    for shift, place in enumerate(sorted(rng.sample(range(len(lines)), len(chain)))):
        lines.insert(place + shift, chain[shift])


class VariableTracking:
    """Samples of vt with one chain. A unit is a line of noise.

    The worked example is drawn first, from the same random stream, and fitted to 500 tokens.
    """

    most: int | None = None

    def __init__(self, request: RulerRequest, prompt: str):
        task = request.spec
        self.prompt, self.count = prompt, request.count
        self.hops: int = task.args["hops"]
        self.opening = task.template[:20]
        self.rng, self.numbers = random.Random(request.seed), np.random.RandomState(request.seed)
        self.tokens_to_generate = task.tokens_to_generate
        example = _Example(self, task)
        size = head_size(example, EXAMPLE_LENGTH)
        draft = Fitter(example, size, EXAMPLE_LENGTH, "the example of vt").attempt(0)
        self.example_names = list(draft.answers)
        self.example = f"{draft.text} {' '.join(self.example_names)}\n"
        self.step = 10 if request.length >= 4096 else 5
        self.reserve = task.tokens_to_generate + self.count(self.example)

    def floor(self, row: int) -> int:
        """Return as many lines as statements: these go in front of different lines."""
        return self.hops + 1

    def trial(self, size: int) -> int:
        """Return the tokens of one sample without the example."""
        return self.count(self.sample(size)[0])

    def draw(self, size: int, row: int) -> Draft:
        """Return a sample with the example, whose names and number are new each time."""
        text, names = self.sample(size)
        place = text.index(self.opening)
        text = f"{text[:place]}{self._fresh_example()}\n{text[place:]}"
        return Draft(text, names, self.count(text) + self.tokens_to_generate)

    def sample(self, size: int) -> tuple[str, list[str]]:
        """Return text and names, with names of five letters and a value of five digits."""
        names = draw_names(self.rng, self.hops + 1, 5)
        value = str(self.numbers.randint(10000, 99999))
        return self.fill(self.prompt, names, value, size)

    def fill(self, prompt: str, names: list[str], value: str, size: int) -> tuple[str, list[str]]:
        """Return a prompt around `size` lines of noise and the chain, with the names."""
        lines = [NOISE] * size
        insert_chain(self.rng, lines, chain_of(names, value))
        context = "\n".join(lines).replace(". \n", ".\n")
        return prompt.format(context=context, query=value, num_v=self.hops + 1), names

    def _fresh_example(self) -> str:
        # one name after the other in the growing text: a new name may contain an old one, as upstream
        text = self.example
        for name in self.example_names:
            text = text.replace(name, _name(self.rng, len(name)))
        return text.replace(EXAMPLE_VALUE, str(self.numbers.randint(10000, 99999)))


class _Example:
    """The worked example as a family of its own: no wrapper, names of three letters, always the same value."""

    step, reserve = 5, 0
    most: int | None = None

    def __init__(self, owner: VariableTracking, task: Task):
        self.owner, self.prompt = owner, task.template + task.answer_prefix

    def floor(self, row: int) -> int:
        return self.owner.floor(row)

    def trial(self, size: int) -> int:
        return self.owner.count(self._sample(size)[0])

    def draw(self, size: int, row: int) -> Draft:
        text, names = self._sample(size)
        return Draft(text, names, self.owner.count(text))

    def _sample(self, size: int) -> tuple[str, list[str]]:
        names = draw_names(self.owner.rng, self.owner.hops + 1, 3)
        return self.owner.fill(self.prompt, names, EXAMPLE_VALUE, size)
