"""A request for RULER samples: everything that decides which rows are generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvbench.benchmarks.base import LONGEST, MOST_SAMPLES
from kvbench.benchmarks.ruler.counting import Counter, counter
from kvbench.benchmarks.ruler.sources import Sources
from kvbench.benchmarks.ruler.tasks import TEMPLATES, Task, find_task

FITS = ("head", "linear2024")


@dataclass(frozen=True)
class RulerRequest:
    """The task, its length and all that changes a row. Raises ValueError for values that do not exist.

    Attributes:
        task: a name in TASKS.
        length: tokens of prompt, answer prefix and answer.
        tokenizer: what `counting.counter` takes.
        num_samples: number of rows.
        seed: of the random streams. Upstream's chunk i takes seed 42 + i.
        sources: None for the prepared or else the embedded ones, a folder, or Sources.
        template: a name in TEMPLATES, or a text with {task_template}.
        edit_wrapper: True as upstream, whose niah tasks with one answer put the words of the wrapper into the singular
            too ("You is a helpful ..."); False leaves them.
        fit: "head" is the generator of NVIDIA/RULER c3f5e3b4 (binary search), "linear2024" an earlier one (see
            docs/benchmarks.md).
        start: the number of samples in earlier chunks. Only qa tasks look at it: their row i asks question start + i.
    """

    task: str
    length: int
    tokenizer: Any = field(repr=False)
    num_samples: int = 500
    seed: int = 42
    sources: Sources | str | Path | None = None
    template: str = "base"
    edit_wrapper: bool = True
    fit: str = "head"
    start: int = 0

    def __post_init__(self) -> None:
        find_task(self.task)
        if not 1 <= self.length <= LONGEST:
            raise ValueError(f"benchmark.lengths=[{self.length}]: lengths are numbers of tokens, from 1 to {LONGEST}")
        if not 1 <= self.num_samples <= MOST_SAMPLES or self.start < 0:
            raise ValueError(
                f"benchmark.samples={self.num_samples}: from 1 to {MOST_SAMPLES}, "
                f"after start={self.start}, which is 0 or more"
            )
        if self.fit not in FITS:
            raise ValueError(f"benchmark.protocol={self.fit}: one of {', '.join(FITS)}")

    @cached_property
    def spec(self) -> Task:
        """The task itself."""
        return find_task(self.task)

    @cached_property
    def texts(self) -> Sources:
        """The sources, opened. Raises ValueError for a folder that is not there."""
        return self.sources if isinstance(self.sources, Sources) else Sources.load(self.sources)

    @cached_property
    def count(self) -> Counter:
        """The function from text to number of tokens."""
        return counter(self.tokenizer)

    @property
    def wrapper(self) -> str:
        """The template in full."""
        return TEMPLATES.get(self.template, self.template)

    @property
    def is_old(self) -> bool:
        """Return True for the generator of 2024."""
        return self.fit == "linear2024"
