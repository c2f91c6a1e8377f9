"""Colours of the figures: safe for colour-blind readers and in grey by default, the field's red and green on request.

Lines differ by marker and dashes, too, so that they can be told apart in black and white.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvbench.report.figures.figure import INK

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

PALETTES = ("safe", "field")
_FIELD = ("#F0496E", "#EBB839", "#0CD79F")  # of the published needle figures
# Okabe and Ito's colours, then others that are as far from these as possible
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#8C564B", "#7F7F7F", "#BCBD22",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES: Sequence[Any] = ("-", (0, (5, 1.2)), (0, (1, 1)), (0, (4, 1, 1, 1)))


def check_palette(palette: str) -> str:
    """Return the name of a palette. Raises ValueError for an unknown one."""
    if palette not in PALETTES:
        raise ValueError(f"--palette {palette}: choose from {', '.join(PALETTES)}")
    return palette


def score_map(palette: str = "safe") -> Colormap:
    """Return the colours of scores from 0 to 1. Those of "safe" grow lighter with the score."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if check_palette(palette) == "field":
        return LinearSegmentedColormap.from_list("field", _FIELD)
    return matplotlib.colormaps["cividis"]


def share_map() -> Colormap:
    """Return the colours of shares of kept tokens: the more, the darker."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shares", ("#F7FAFD", "#C3DAEE", "#6BAED6", "#2171B5", "#08306B"))


def ink_on(colour: Sequence[float]) -> str:
    """Return the colour of text on a background (red, green, blue, …): dark, or white on a dark one."""
    red, green, blue = (value / 12.92 if value <= 0.04 else ((value + 0.055) / 1.055) ** 2.4 for value in colour[:3])
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 else "white"


def line_styles(methods: Sequence[str], shown: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return colour, marker and dashes of the methods `shown` (default: all) of a table.

    A method has the style of its place in `methods`, so that it looks the same in all figures of a table. Of the
    methods after the tenth, those that are shown have colours that no other shown one has, as far as there are any.
    """
    places = {method: place for place, method in enumerate(dict.fromkeys(methods))}
    chosen = list(places) if shown is None else sorted(set(shown), key=places.__getitem__)
    taken: set[int] = set()
    styles = {}
    for method in chosen:
        place = places[method]
        free = (other for other in range(len(COLOURS)) if other not in taken)
        place = place if shown is None or place < len(COLOURS) else next(free, place)
        taken.add(place)
        styles[method] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "ls": _DASHES[place // len(COLOURS) % len(_DASHES)],
        }
    return styles
