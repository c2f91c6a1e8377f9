"""The rules of WindowKV (arXiv 2503.17922) for windows of tokens, which depend on the task of the prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from kvbench.common.tasks import TASKS
from kvbench.methods.fields import InvalidField, check_at_least
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.tasks import OfTask

_RULE = re.compile(r"(top_half|average)-([1-9]\d{0,4})")


@dataclass(frozen=True)
class OfWindows(OfTask):
    """A part with a rule for windows for each task.

    Args:
        localization, aggregation: the rule of a task: `top_half` or `average`, a hyphen, and how many of the last
            queries make the scores.
        size: tokens of a window.

    Raises:
        InvalidField: no such rule.
    """

    idle = (*OfTask.idle, *((task, "task", other) for task in TASKS for other in TASKS if other != task))
    localization: str = "top_half-32"
    aggregation: str = "average-16"
    size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "size", 1)
        for task in TASKS:
            if not _RULE.fullmatch(getattr(self, task)):
                reason = "must be top_half-N or average-N, with N last queries that make the scores"
                raise InvalidField(task, getattr(self, task), reason)

    @property
    def rule(self) -> str:
        """The rule, top_half or average; of the first task that is possible."""
        return str(getattr(self, self.possible_tasks[0])).partition("-")[0]

    @property
    def suffix(self) -> int:
        """Queries that make the scores, and last tokens that always stay; the most of all tasks that are possible."""
        return max(int(getattr(self, task).partition("-")[2]) for task in self.possible_tasks)

    def for_prompt(self, facts: PromptFacts) -> Self:
        """Return the part with the rule of the prompt's task. Parts with the same rule are equal."""
        rule = getattr(self, self.task_of(facts))
        return replace(self, task=TASKS[0], classifier=None, **dict.fromkeys(TASKS, rule))
