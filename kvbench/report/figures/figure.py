"""Basics of all figures: style, widths of a printed page, files, and a stamp that says what a picture shows.

Every figure is one (`SINGLE`) or two (`DOUBLE`) columns of a printed page wide, and is written as PNG and PDF. The same
data gives the same bytes: no dates, no random ids, and none of the user's own settings of matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from kvbench.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE, DOUBLE, TALL = 3.3, 6.9, 9.0  # inches: the width of one column and of two, and the height of a page
INK, FAINT, LINE = "#262626", "#6E6E6E", "#B4B4B4"
TITLE, LABEL, TICK = 8.0, 7.5, 6.5  # points
_DRAWING, _STAMP = 4, "kvbench-shows"  # raise the number when figures should be drawn again
_with_pdf: ContextVar[bool] = ContextVar("with_pdf", default=True)
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a dollar sign in a stored name does not begin a formula
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE, "xtick.color": INK, "ytick.color": INK,
    "font.size": LABEL, "axes.titlesize": TITLE, "axes.labelsize": LABEL, "legend.fontsize": TICK,
    "xtick.labelsize": TICK, "ytick.labelsize": TICK, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "lines.linewidth": 1.3, "lines.markersize": 4.2,
    "legend.frameon": False, "hatch.linewidth": 0.6, "hatch.color": LINE, "pdf.fonttype": 42,
    "svg.hashsalt": "kvbench", "figure.dpi": 100,
}  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Return a drawing function that uses our style and matplotlib's defaults, whatever the user has set."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with _style():
            return draw(*args, **kwargs)

    return inside


@contextmanager
def _style() -> Iterator[None]:
    with _without_backend():
        try:
            from matplotlib import style
        except ImportError:
            raise ValueError("figures need matplotlib: pip install matplotlib") from None
    with style.context(["default", _STYLE]):
        yield


@contextmanager
def _without_backend() -> Iterator[None]:
    """Hide MPLBACKEND: we need no backend of the user's, and matplotlib refuses to load with an unknown one."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return a figure without pyplot: no window, no global state. Sizes are inches."""
    with _without_backend():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    engine: Any = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def png_alone() -> Iterator[None]:
    """Write figures without PDFs, which take most of the time of drawing."""
    token = _with_pdf.set(False)
    try:
        yield
    finally:
        _with_pdf.reset(token)


def save(figure: Figure, path: str | Path, stamp: str) -> Path:
    """Write a figure as PNG, with its stamp inside, and as PDF next to it. Return the path of the PNG.

    The PNG comes last and is replaced as a whole, so one with a stamp means that both are complete. Within `png_alone`
    there is no PDF, and one of an earlier figure goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pdf = path.with_suffix(".pdf")
    files: list[tuple[Path, dict[str, Any]]] = [(path, {"format": "png", "dpi": 200, "metadata": {_STAMP: stamp}})]
    if _with_pdf.get():
        files.insert(0, (pdf, {"format": "pdf", "metadata": {"CreationDate": None}}))
    else:
        pdf.unlink(missing_ok=True)
    with warnings.catch_warnings():  # letters that matplotlib's own font lacks are drawn as boxes
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        for target, how in files:
            drawn = io.BytesIO()  # matplotlib turns a full disk into an error of its own, so it writes no file itself
            figure.savefig(drawn, **how)
            with replacing(target) as temporary:
                temporary.write_bytes(drawn.getvalue())
    return path


def stamp(shown: object) -> str:
    """Return a hash of all that a figure shows (JSON-able): it is drawn again only if that changes."""
    return hashlib.sha256(json.dumps([_DRAWING, shown], sort_keys=True).encode()).hexdigest()


def is_drawn(path: str | Path, stamp: str) -> bool:
    """Return True if the picture at `path` has this stamp, and its PDF is there if one is wanted."""
    return stamp_of(path) == stamp and (not _with_pdf.get() or Path(path).with_suffix(".pdf").exists())


def stamp_of(path: str | Path) -> str | None:
    """Return the stamp of a picture; None where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            value = picture.info.get(_STAMP)
    except (OSError, SyntaxError, ValueError):  # not there, or not a PNG
        return None
    return value if isinstance(value, str) else None


def page(path: Path, number: int) -> Path:
    """Return the path of a page of a figure: the first has the plain name, then come "-2", "-3"."""
    return path if number == 0 else path.with_stem(f"{path.stem}-{number + 1}")


def wrapped(text: str, inches: float, size: float = TITLE, lines: int = 2) -> str:
    """Return a text in lines that are at most so wide in bold type of `size` points; what does not fit is cut.

    Lines end after spaces, and after underscores and hyphens in a word that is longer than a line.
    """
    width = max(8, int(inches * 72 / (0.62 * size)))
    return "\n".join(_Wrapper(width, max_lines=lines, placeholder=" …").wrap(text))


class _Wrapper(textwrap.TextWrapper):
    """A wrapper that breaks a name such as streaming_llm_decode between its parts, if a line cannot hold it."""

    wordsep_re = re.compile(r"(\s+|[^\s_-]*_+(?=\w)|[^\s_-]+-+(?=[A-Za-z]))")

    def _split(self, text: str) -> list[str]:
        words = re.split(r"(\s+)", text)
        parts = [super(_Wrapper, self)._split(word) if len(word) > self.width else [word] for word in words]
        return [part for word in parts for part in word if part]


def headline(axes: Axes, text: str, details: str, inches: float, size: float = TITLE) -> None:
    """Write a bold title above axes that are so wide, and details below it in smaller type."""
    small = size - 1.5
    below = wrapped(details, inches * 1.12, small)
    rise = 3 + 1.25 * small * len(below.splitlines())
    axes.annotate(below, (0, 1), (0, 3), "axes fraction", "offset points", fontsize=small, color=FAINT, linespacing=1.1)
    axes.set_title(
        wrapped(text, inches, size), loc="left", fontsize=size, fontweight="bold", pad=rise + 1, linespacing=1.1
    )
