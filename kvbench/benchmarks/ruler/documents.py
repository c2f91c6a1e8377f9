"""The question sets of RULER's qa tasks: SQuAD v2.0 (arXiv 1806.03822) and HotpotQA (arXiv 1809.09600)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """A question with its documents, given as indices.

    gold: the documents that upstream gives to every prompt. related: other documents of the same article.
    needed: those of gold without which the question has no answer.
    """

    text: str
    answers: list[str]
    gold: list[int]
    related: list[int]
    needed: list[int]


@dataclass(frozen=True)
class Questions:
    """All questions in the order of the file, and all different documents, sorted."""

    questions: list[Question]
    documents: list[str]


def squad(data: Any) -> Questions:
    """Return the questions of dev set v2.0. Those without an answer are left out; answers may repeat."""
    articles = [article["paragraphs"] for article in data["data"]]
    documents, number = _numbered(paragraph["context"] for article in articles for paragraph in article)
    questions = []
    for article in articles:
        numbers = [number[paragraph["context"]] for paragraph in article]
        for paragraph, gold in zip(article, numbers, strict=True):
            related = [other for other in numbers if other != gold]
            for entry in paragraph["qas"]:
                if not entry.get("is_impossible", False):
                    answers = [answer["text"] for answer in entry["answers"]]
                    questions.append(Question(entry["question"], answers, [gold], related, [gold]))
    return Questions(questions, documents)


def hotpotqa(data: Any) -> Questions:
    """Return the questions of the dev set (distractor): a document is a title, a newline, and its sentences.

    The ten documents of a question are all gold to upstream. Those with its supporting facts are needed; in a file
    without supporting facts, all ten are.
    """
    texts = [[f"{title}\n{''.join(sentences)}" for title, sentences in entry["context"]] for entry in data]
    documents, number = _numbered(text for entry in texts for text in entry)
    questions = []
    for entry, own in zip(data, texts, strict=True):
        gold = [number[text] for text in own]
        titles = {fact[0] for fact in entry.get("supporting_facts", [])}
        needed = [place for place, (title, _) in zip(gold, entry["context"], strict=True) if title in titles]
        questions.append(Question(entry["question"], [entry["answer"]], gold, [], needed or gold))
    return Questions(questions, documents)


def _numbered(texts: Any) -> tuple[list[str], dict[str, int]]:
    documents = sorted(set(texts))
    return documents, {text: number for number, text in enumerate(documents)}
