"""Basics of all figures: ink, canvas, and a stamp that says what a picture shows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kvbench.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, LINE = "#262626", "#6E6E6E", "#B4B4B4"
_DRAWING, _STAMP = 2, "kvbench-shows"  # raise the number when figures should be drawn again


def new(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return a figure without pyplot: drawn by Agg, no window, no global state. Sizes are inches.

    Texts are drawn as they are: a dollar sign in a stored name does not begin a formula.
    """
    with _without_backend():
        import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["hatch.linewidth"] = 0.6
    matplotlib.rcParams["text.parse_math"] = False
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def _without_backend() -> Iterator[None]:
    """Hide MPLBACKEND: we need no backend of the user's, and matplotlib refuses to load with an unknown one."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def save(figure: Figure, path: str | Path, stamp: str) -> Path:
    """Write a PNG with its stamp inside and return its path.

    The stamp comes before the picture, so a PNG torn by a kill would pass as drawn: it is replaced as a whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png", metadata={_STAMP: stamp})
    return path


def stamp(shown: object) -> str:
    """Return a hash of all that a figure shows (JSON-able): it is drawn again only if that changes."""
    return hashlib.sha256(json.dumps([_DRAWING, shown], sort_keys=True).encode()).hexdigest()


def is_drawn(path: str | Path, stamp: str) -> bool:
    """Return True if the picture at `path` has this stamp."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.info.get(_STAMP) == stamp
    except (OSError, SyntaxError, ValueError):  # not there, or not a PNG
        return False
