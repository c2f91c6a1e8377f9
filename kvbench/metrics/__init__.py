"""Scores of a predicted text: pure functions of strings, each in [0, 1]. Modules are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.metrics.longbench import bucket, dataset_score, longbench_score, longbench_scores
    from kvbench.metrics.many import score_many
    from kvbench.metrics.needle import needle_rouge
    from kvbench.metrics.ruler import ruler_score

__all__ = [
    "bucket",
    "dataset_score",
    "longbench_score",
    "longbench_scores",
    "needle_rouge",
    "ruler_score",
    "score_many",
]

_HOME = {
    "bucket": "longbench",
    "dataset_score": "longbench",
    "longbench_score": "longbench",
    "longbench_scores": "longbench",
    "needle_rouge": "needle",
    "ruler_score": "ruler",
    "score_many": "many",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
