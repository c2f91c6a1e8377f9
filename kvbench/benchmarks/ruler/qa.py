"""Question answering: the paragraphs that hold the answer among other paragraphs."""

from __future__ import annotations

import random

from kvbench.benchmarks.ruler.counting import Counter
from kvbench.benchmarks.ruler.documents import Questions
from kvbench.benchmarks.ruler.fitting import Draft
from kvbench.benchmarks.ruler.tasks import DOCUMENT, Task


class Documents:
    """Samples of one qa task. A unit is a document; row i asks question start + i, trials ask question 0.

    year2024: trials count the answers too, and the set of documents is not repeated when it is used up.
    """

    step = 10

    def __init__(
        self,
        task: Task,
        prompt: str,
        seed: int,
        count: Counter,
        questions: Questions,
        start: int,
        *,
        year2024: bool = False,
    ):
        self.prompt, self.seed, self.count, self.year2024 = prompt, seed, count, year2024
        self.rng = random.Random(seed)
        self.reserve = task.tokens_to_generate
        self.questions, self.documents, self.start = questions.questions, questions.documents, start
        self.most = len(self.documents) if year2024 else None

    def floor(self, row: int) -> int:
        """Return the number of documents that hold the answer: 1 in SQuAD, about 10 in HotpotQA."""
        return len(self.questions[self.start + row].gold)

    def trial(self, size: int) -> int:
        """Return the tokens of one sample of the first question."""
        text, answers = self._sample(0, max(size, len(self.questions[0].gold)))
        return self.count(f"{text} {answers}" if self.year2024 else text)

    def draw(self, size: int, row: int) -> Draft:
        """Return the question of a row among `size` documents."""
        text, answers = self._sample(self.start + row, size)
        return Draft(text, answers, self.count(text) + self.reserve)

    def _sample(self, index: int, size: int) -> tuple[str, list[str]]:
        question = self.questions[index]
        chosen = self._choose(index, size)
        random.Random(self.seed).shuffle(chosen)
        context = "\n\n".join(DOCUMENT.format(i=i, document=text) for i, text in enumerate(chosen, 1))
        return self.prompt.format(context=context, query=question.text), question.answers

    def _choose(self, index: int, size: int) -> list[str]:
        question = self.questions[index]
        if size >= len(self.documents):
            repeats = -(-size // len(self.documents))
            return (self.documents * repeats)[:size]
        others = size - len(question.gold)
        if others > len(question.related):
            own = [*question.gold, *question.related]
            known = set(own)
            rest = [number for number in range(len(self.documents)) if number not in known]
            numbers = own + self.rng.sample(rest, max(0, others - len(question.related)))
        else:
            numbers = question.gold + self.rng.sample(question.related, others)
        return [self.documents[number] for number in numbers]
