"""Parts that depend on the task of a prompt, and how they learn it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvbench.common.tasks import TASKS, check_task
from kvbench.methods.base import Part
from kvbench.methods.fields import InvalidField, check_one_of
from kvbench.methods.files import DialFile
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.task_classifier import TaskClassifier, read_classifier

SOURCES = ("auto", "classifier", *TASKS)


@dataclass(frozen=True)
class OfTask(Part):
    """A part that depends on the task of the prompt.

    Args:
        task: where the task comes from. A task by name; "classifier": from the words of the prompt; "auto": from its
            benchmark, or from its words where the benchmark names no task.
        classifier: weights of the classifier, written by scripts/train_task_classifier; None if `task` is a name.

    Raises:
        InvalidField: another source, or a file that is no classifier.
    """

    idle = tuple(("classifier", "task", task) for task in TASKS)
    task: str = "auto"
    classifier: DialFile | None = None

    def __post_init__(self) -> None:
        check_one_of(self, "task", SOURCES)
        if self.classifier is None and self.task not in TASKS:
            raise InvalidField("classifier", None, f"task={self.task} needs the weights of a classifier")
        self._read()

    @property
    def needs(self) -> frozenset[str]:
        """The facts by which the task is known, unless it is given by name."""
        return frozenset() if self.task in TASKS else frozenset({"task", "token_ids", "model"})

    @property
    def possible_tasks(self) -> tuple[str, ...]:
        """The tasks that a prompt may turn out to have."""
        return (self.task,) if self.task in TASKS else TASKS

    def chosen(self, facts: PromptFacts) -> Mapping[str, str]:
        """Return the task of the prompt."""
        return {"task": self.task_of(facts)}

    def task_of(self, facts: PromptFacts) -> str:
        """Return the task of a prompt.

        Raises:
            ValueError: nothing says it: no task is given, and no token ids with a view of the model.
        """
        if self.task in TASKS:
            return self.task
        check_task(facts.task, "prompt")
        if self.task == "auto" and facts.task is not None:
            return facts.task
        if facts.token_ids is None or facts.model is None:
            raise ValueError(
                f"method.task={self.task}: give the prompt's task, or its token_ids and a model view to classify it by"
            )
        classifier = self._read()
        assert classifier is not None
        return classifier.task(facts.token_ids.tolist(), facts.model.decode)

    def _read(self) -> TaskClassifier | None:
        if self.classifier is None:
            return None
        try:
            return read_classifier(self.classifier.text)
        except ValueError as error:
            raise InvalidField("classifier", self.classifier, f"is no classifier of tasks ({error})") from None
