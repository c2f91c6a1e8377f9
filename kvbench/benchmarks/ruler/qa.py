"""Question answering: the paragraphs that hold the answer among other paragraphs."""

from __future__ import annotations

import random

from kvbench.benchmarks.ruler.fitting import Draft
from kvbench.benchmarks.ruler.request import RulerRequest
from kvbench.benchmarks.ruler.tasks import DOCUMENT


class Documents:
    """Samples of one qa task. A unit is a document; row i asks question start + i, trials ask question 0.

    With the generator of 2024, trials count the answers too, and the documents are not repeated when they are used up.
    Upstream gives a question of HotpotQA its ten documents at least, and has no row where they do not fit. Here the
    last of them that the question does not need are left out.
    """

    step = 10

    def __init__(self, request: RulerRequest, prompt: str):
        task, known = request.spec, request.texts.questions(request.spec.args["dataset"])
        self.prompt, self.length, self.seed, self.count = prompt, request.length, request.seed, request.count
        self.year2024, self.start = request.is_old, request.start
        self.questions, self.documents = known.questions, known.documents
        if self.start + request.num_samples > len(self.questions):
            raise ValueError(
                f"benchmark.samples={request.num_samples}: {request.task} has {len(self.questions)} questions, "
                f"from {self.start} on"
            )
        self.rng = random.Random(self.seed)
        self.reserve = task.tokens_to_generate
        self.most = len(self.documents) if self.year2024 else None
        self.given = len(self.questions[0].gold)

    def floor(self, row: int) -> int:
        """Return the number of documents that upstream always gives: 1 in SQuAD, about 10 in HotpotQA."""
        return len(self.questions[self.start + row].gold)

    def trial(self, size: int) -> int:
        """Return the tokens of one sample of the first question."""
        text, answers = self._written(0, self._choose(0, max(size, self.given)))
        return self.count(f"{text} {answers}" if self.year2024 else text)

    def draw(self, size: int, row: int) -> Draft:
        """Return the question of a row among `size` documents; of the fewest, only as many as fit."""
        index = self.start + row
        question = self.questions[index]
        chosen = self._choose(index, size)
        draft = self._draft(index, chosen)
        spare = [number for number in question.gold if number not in question.needed]
        while draft.length > self.length and spare and size <= len(question.gold):
            chosen.remove(spare.pop())
            draft = self._draft(index, chosen)
        return draft

    def _draft(self, index: int, chosen: list[int]) -> Draft:
        text, answers = self._written(index, chosen)
        return Draft(text, answers, self.count(text) + self.reserve)

    def _written(self, index: int, chosen: list[int]) -> tuple[str, list[str]]:
        question, texts = self.questions[index], [self.documents[number] for number in chosen]
        random.Random(self.seed).shuffle(texts)
        context = "\n\n".join(DOCUMENT.format(i=i, document=text) for i, text in enumerate(texts, 1))
        return self.prompt.format(context=context, query=question.text), question.answers

    def _choose(self, index: int, size: int) -> list[int]:
        question, all_documents = self.questions[index], len(self.documents)
        if size >= all_documents:
            return [number % all_documents for number in range(size)]
        others = size - len(question.gold)
        if others <= len(question.related):
            return question.gold + self.rng.sample(question.related, others)
        own = [*question.gold, *question.related]
        known = set(own)
        rest = [number for number in range(all_documents) if number not in known]
        return own + self.rng.sample(rest, max(0, others - len(question.related)))
