"""The kinds of tasks that a prompt may set."""

from __future__ import annotations

LOCALIZATION, AGGREGATION = "localization", "aggregation"
TASKS = (LOCALIZATION, AGGREGATION)
"""localization: the answer lies in a few places of the context, as in question answering and retrieval.
aggregation: it depends on the context as a whole, as in summarisation, counting, few-shot examples and code."""


def check_task(task: object, where: str) -> None:
    """Raise ValueError for a task that is neither None nor one of `TASKS`; `where` names the place that gave it."""
    if task is not None and task not in TASKS:
        raise ValueError(f"{where}: task={task!r} must be one of {', '.join(TASKS)}, or None")
