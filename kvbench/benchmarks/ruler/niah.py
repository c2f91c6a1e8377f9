"""Needle tasks: key-value sentences hidden in noise, essays, or among needles that look the same."""

from __future__ import annotations

import random
import uuid

from kvbench.benchmarks.ruler.fitting import Draft
from kvbench.benchmarks.ruler.request import RulerRequest
from kvbench.benchmarks.ruler.tasks import NEEDLE, NOISE, Task

# round(linspace(0, 100, 40)): where in the essay a needle may go, in per cent of its sentences
DEPTHS = [round(100 * step / 39) for step in range(40)]


def has_one_answer(task: Task) -> bool:
    """Return True if a sample asks for one value, so that its words are in the singular."""
    return bool(task.args["queries"] * task.args["values"] == 1)


def singular(text: str) -> str:
    """Return a prompt in the singular. Upstream does so with the words of the wrapper too: "You is a helpful ..."."""
    for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(old, new)
    return text


class Niah:
    """Samples of one niah task. A unit is an essay word, a line of noise, or a distracting needle.

    Trials of the generator of 2024 count the answers too.
    """

    most: int | None = None

    def __init__(self, request: RulerRequest, prompt: str):
        task = request.spec
        self.args, self.seed, self.count, self.sources = task.args, request.seed, request.count, request.texts
        self.measure_answers = request.is_old
        self.rng = random.Random(self.seed)
        self.reserve = task.tokens_to_generate
        self.keys = max(self.args["keys"], self.args["queries"])
        if self.args["haystack"] == "essay":
            self.step = 500
        else:
            self.step = 25 if request.length >= 4096 else 5
        self.prompt = prompt
        self.label = self.args["value"][:-1] if has_one_answer(task) else self.args["value"]

    def floor(self, row: int) -> int:
        """Return one unit, or as many lines as needles: these go in front of different lines."""
        return 1 if self.args["haystack"] == "essay" else self.keys * self.args["values"]

    def trial(self, size: int) -> int:
        """Return the tokens of one sample."""
        text, answers = self._sample(size)
        return self.count(text + " ".join(answers) if self.measure_answers else text)

    def draw(self, size: int, row: int) -> Draft:
        """Return a sample; rows differ by the random stream alone."""
        text, answers = self._sample(size)
        return Draft(text, answers, self.count(text) + self.reserve)

    def _sample(self, size: int) -> tuple[str, list[str]]:
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(self.keys):
            keys.append(self._random(self.args["key"]))
            values.append([self._random(self.args["value"]) for _ in range(self.args["values"])])
        needles = [self._needle(key, value) for key, group in zip(keys, values, strict=True) for value in group]
        random.Random(self.seed).shuffle(needles)
        context = self._in_essay(needles, size) if self.args["haystack"] == "essay" else self._in_lines(needles, size)
        asked = self.rng.sample(range(self.keys), self.args["queries"])
        query = _listed([keys[index] for index in asked])
        text = self.prompt.format(type_needle_v=self.label, context=context, query=query)
        return text, [value for index in asked for value in values[index]]

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type_needle_v=self.args["value"], key=key, value=value)

    def _random(self, kind: str) -> str:
        if kind == "numbers":
            return str(self.rng.randint(1_000_000, 9_999_999))
        if kind == "words":
            return self.rng.choice(self.sources.pairs)
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _in_essay(self, needles: list[str], size: int) -> str:
        sentences = self.sources.sentences(size)
        depths = self.rng.sample(DEPTHS, len(needles))
        places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
        pieces, start = [], 0
        for place, needle in zip(places, needles, strict=True):
            pieces += [" ".join(sentences[start:place]), needle]
            start = place
        return " ".join([*pieces, " ".join(sentences[start:])])

    def _in_lines(self, needles: list[str], size: int) -> str:
        if self.args["haystack"] == "noise":
            lines = [NOISE] * size
        else:
            kinds = self.args["key"], self.args["value"]
            lines = [self._needle(*map(self._random, kinds)) for _ in range(size)]
        places = sorted(self.rng.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
