"""Kept tokens over the text of a prompt: which words survived, in how many heads, and in which layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, LINE, TICK, styled
from kvbench.report.figures.palette import ink_on, share_map
from kvbench.store.kept import KeptTokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 5.8  # points of the text
_CHARACTER, _LINE = 0.602 * _SIZE / 72, 0.118  # inches: the width of a character, and from line to line
_LEFT, _RIGHT = 0.42, 0.62
_LINES = 52  # of text on a page; of a longer prompt an excerpt is shown
_PIXELS = 1000  # columns of the map of layers
_MARK = "#D55E00"

Placed = tuple[int, int, int, str]  # token, line, column, text


@styled
def kept_text(kept: KeptTokens, heading: str, details: str, path: Path, answers: Sequence[str] = ()) -> Path:
    """Write the text with each token as dark as the share of heads that keep it, and below it the layers.

    Args:
        answers: texts whose tokens get a frame; those that do not occur in the prompt get none.

    Returns the path of the PNG.
    """
    heading = f"Kept tokens over the text: {heading}"
    shares = kept.mask_LUT.mean((0, 1))
    by_layer = kept.mask_LUT.mean(1)
    marked = answer_tokens(kept.tokens, answers)
    content = [list(kept.tokens), np.round(by_layer, 5).tolist(), sorted(marked)]
    stamp = figure.stamp(["kept text", heading, details, content])
    if figure.is_drawn(path, stamp):
        return path
    width = int((DOUBLE - _LEFT - _RIGHT) / _CHARACTER)
    first, placed = _excerpt(kept.tokens, width, min(marked, default=None))
    lines = placed[-1][1] + 1
    below, map_height, top = 0.42, 1.5, 0.5
    total = top + lines * _LINE + 0.2 + map_height + below
    picture = figure.new(DOUBLE, total, layout=None)
    left, wide = _LEFT / DOUBLE, 1 - (_LEFT + _RIGHT) / DOUBLE
    text_axes = picture.add_axes((left, (total - top - lines * _LINE) / total, wide, lines * _LINE / total))
    _write(text_axes, placed, shares, marked)
    text_axes.set(xlim=(0, width), ylim=(lines, 0))
    axes = picture.add_axes((left, below / total, wide, map_height / total))
    image = _layers(axes, by_layer, marked)
    bar = picture.add_axes((1 - (_RIGHT - 0.1) / DOUBLE, below / total, 0.1 / DOUBLE, map_height / total))
    scale = picture.colorbar(image, cax=bar)
    scale.set_label("Heads that keep a token (%)")
    scale.outline.set_visible(False)
    picture.text(0.06 / DOUBLE, 1 - 0.06 / total, heading, fontsize=9, fontweight="bold", va="top")
    span = "" if len(placed) == len(kept.tokens) else f"; tokens {first} to {placed[-1][0]} of {len(kept.tokens)}"
    frame = "; frame and marks: the answer" if marked else ""
    note = f"{details}; the darker, the more heads of all layers keep a token{frame}{span}"
    picture.text(0.06 / DOUBLE, 1 - 0.24 / total, note, fontsize=TICK, color=FAINT, va="top")
    return figure.save(picture, path, stamp)


def answer_tokens(tokens: Sequence[str], answers: Sequence[str]) -> set[int]:
    """Return the tokens that hold a part of an answer, at every place where it stands in the text."""
    text, ends = "".join(tokens), np.cumsum([len(token) for token in tokens])
    marked: set[int] = set()
    for answer in filter(None, (answer.strip() for answer in answers)):
        at = text.find(answer)
        while at >= 0:
            first, last = (int(np.searchsorted(ends, place, side="right")) for place in (at, at + len(answer) - 1))
            marked |= set(range(first, last + 1))
            at = text.find(answer, at + len(answer))
    return marked


def _excerpt(tokens: Sequence[str], width: int, wanted: int | None) -> tuple[int, list[Placed]]:
    """Return the first token shown, and those that fit on a page: all, or those around the wanted one, or the last."""
    placed = _placed(tokens, 0, width)
    if placed[-1][1] < _LINES:
        return 0, placed
    line = placed[-1][1] if wanted is None else placed[wanted][1]
    begin = max(0, min(line - _LINES // 2, placed[-1][1] - _LINES + 1))
    shown = [(token, at - begin, column, text) for token, at, column, text in placed if begin <= at < begin + _LINES]
    return shown[0][0], shown


def _placed(tokens: Sequence[str], first: int, width: int) -> list[Placed]:
    """Return where each token stands; a line ends at a break of the text, and where the next token would not fit."""
    placed: list[Placed] = []
    line = column = 0
    for number, token in enumerate(tokens, first):
        text = "".join(c if c.isprintable() else "·" for c in token.replace("\n", "¶").replace("\t", " ")) or "·"
        text = text[:width]
        if column + len(text) > width:
            line, column = line + 1, 0
        placed.append((number, line, column, text))
        column += len(text)
        if "\n" in token:
            line, column = line + 1, 0
    return placed


def _write(axes: Axes, placed: Sequence[Placed], shares: NDArray[np.float64], marked: set[int]) -> None:
    """Write the tokens on their backgrounds, and a frame around those that are marked."""
    from matplotlib.patches import Rectangle

    colours: Any = share_map()
    axes.axis("off")
    for line, column, length in _frames(placed, marked):
        axes.add_patch(Rectangle((column, line + 0.04), length, 0.94, fill=False, ec=_MARK, lw=0.9, zorder=3))
    for token, line, column, text in placed:
        colour = colours(float(shares[token]))
        axes.add_patch(Rectangle((column, line + 0.06), len(text), 0.9, fc=colour, lw=0))
        for place, character in enumerate(text):  # one by one: each stays in its column
            if character != " ":
                axes.text(
                    column + place + 0.5, line + 0.54, character, fontsize=_SIZE, family="monospace",
                    color=ink_on(colour), ha="center", va="center_baseline",
                )  # fmt: skip


def _frames(placed: Sequence[Placed], marked: set[int]) -> list[tuple[int, int, int]]:
    """Return line, column and width of a frame around marked tokens that stand next to each other."""
    frames: list[tuple[int, int, int]] = []
    before = -2
    for token, line, column, text in placed:
        if token in marked:
            if frames and token == before + 1 and frames[-1][0] == line:
                frames[-1] = line, frames[-1][1], frames[-1][2] + len(text)
            else:
                frames.append((line, column, len(text)))
            before = token
    return frames


def _layers(axes: Axes, by_layer: NDArray[np.float64], marked: set[int]) -> Any:
    """Draw the share of heads that keep each token, layer by layer; of a long prompt, means of several tokens."""
    layers, tokens = by_layer.shape
    step = -(-tokens // _PIXELS)
    pooled = np.stack([by_layer[:, at : at + step].mean(1) for at in range(0, tokens, step)], axis=1)
    image = axes.imshow(
        100 * pooled, aspect="auto", cmap=share_map(), vmin=0, vmax=100, interpolation="none",
        extent=(0, step * pooled.shape[1], layers - 0.5, -0.5),
    )  # fmt: skip
    axes.set_xlabel("Token of the prompt" + (f" (a pixel is the mean of {step})" if step > 1 else ""))
    axes.set_xlim(0, tokens)
    axes.set_yticks(range(0, layers, next(s for s in (1, 2, 5, 10, 20, 50, 100, 10**6) if layers / s <= 8)))
    axes.yaxis.set_label_coords(-0.045, 0.5)
    axes.set_ylabel("Layer")
    for token in sorted(marked):
        axes.plot([token + 0.5], [-0.5], marker="v", color=_MARK, ms=3.5, clip_on=False, mew=0)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set(color=LINE, linewidth=0.5)
    axes.tick_params(length=2)
    return image
