"""Variable tracking as the generator of 2024 wrote it: other line breaks, and the same worked example in every row."""

from __future__ import annotations

import random

import numpy as np

from kvbench.benchmarks.ruler.fitting import Draft, Fitter, linear_size
from kvbench.benchmarks.ruler.request import RulerRequest
from kvbench.benchmarks.ruler.tasks import NOISE, VT_PREFIX_2024, Task
from kvbench.benchmarks.ruler.vt import EXAMPLE_LENGTH, chain_of, draw_names, insert_chain


class VariableTracking2024:
    """Samples of vt with one chain. A unit is a line of noise.

    Lines end in a newline and are joined by spaces. The example has a random value too, counts the answer it ends
    with, and stands in all rows between blank lines.
    """

    step = 10
    most: int | None = None

    def __init__(self, request: RulerRequest, prompt: str):
        task = request.spec
        self.prompt, self.length, self.count = prompt, request.length, request.count
        self.hops: int = task.args["hops"]
        self.opening = task.template[:20]
        self.rng, self.numbers = random.Random(request.seed), np.random.RandomState(request.seed)
        self.tokens_to_generate = task.tokens_to_generate
        example = _Example2024(self, _bare(prompt, task))
        size = linear_size(example, EXAMPLE_LENGTH)
        draft = Fitter(example, size, EXAMPLE_LENGTH, "the example of vt").attempt(0)
        self.example = f"{draft.text} {' '.join(draft.answers)}\n\n"
        self.reserve = task.tokens_to_generate + self.count(self.example)

    def floor(self, row: int) -> int:
        """Return as many lines as statements."""
        return self.hops + 1

    def trial(self, size: int) -> int:
        """Return the tokens of one sample and, as upstream, of the list of its answers as Python prints it."""
        text, names = self.sample(self.prompt, size, 5)
        return self.count(f"{text} {names}")

    def draw(self, size: int, row: int) -> Draft:
        """Return a sample with the example. Its length is the sum of the two, as upstream."""
        text, names = self.sample(self.prompt, size, 5)
        length = self.count(text) + self.reserve
        place = text.index(self.opening)
        text = f"{text[:place]} {self.example}\n\n{text[place:]}"
        # the blank lines are not in that sum; upstream ignores them
        real = self.count(text) + self.tokens_to_generate
        return Draft(text, names, length if real <= self.length else real)

    def sample(self, prompt: str, size: int, letters: int) -> tuple[str, list[str]]:
        """Return text and names."""
        names = draw_names(self.rng, self.hops + 1, letters)
        value = str(self.numbers.randint(10000, 99999))
        lines = [f"{NOISE}\n"] * size
        if size <= self.hops + 1:
            # so few lines are broken into their sentences
            parts = [part for line in lines for part in line.split(".")]
            lines = [f"{part}." if part.strip() else part for part in parts]
        insert_chain(self.rng, lines, chain_of(names, value))
        context = " ".join(lines).replace(". \n", ".\n")
        return prompt.format(context=context, query=value, num_v=self.hops + 1), names


class _Example2024:
    """The worked example as a family of its own, with names of three letters."""

    step = 5
    most: int | None = None

    def __init__(self, owner: VariableTracking2024, prompt: str):
        self.owner, self.prompt, self.reserve = owner, prompt, owner.tokens_to_generate

    def floor(self, row: int) -> int:
        return self.owner.floor(row)

    def trial(self, size: int) -> int:
        text, names = self.owner.sample(self.prompt, size, 3)
        return self.owner.count(f"{text} {names}")

    def draw(self, size: int, row: int) -> Draft:
        text, names = self.owner.sample(self.prompt, size, 3)
        return Draft(text, names, self.owner.count(text) + self.reserve)


def _bare(prompt: str, task: Task) -> str:
    """Return a prompt without its wrapper.

    As upstream, white space collapses and the last word before the prefix is lost.
    """
    if prompt == task.template + VT_PREFIX_2024:
        return prompt
    first, last = prompt.index(task.template[:20]), prompt.index(VT_PREFIX_2024[:10])
    return " ".join(prompt[first:last].split()[:-1]) + prompt[last:]
