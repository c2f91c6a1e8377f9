"""Attention maps of one layer: a panel for each query head, with the tokens that its KV head stores below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvbench.engine.observe import PIXELS, ObservedLayer
from kvbench.profile.inspect_text import Inspected, short
from kvbench.report.figures import figure
from kvbench.report.figures.figure import DOUBLE, FAINT, INK, LINE, styled
from kvbench.report.figures.kept_heads import kept_heads
from kvbench.report.figures.kept_text import kept_text
from kvbench.store import KeptTokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

_WORDS = 24  # prompts of at most that many tokens have them written at the axes
_GAMMA = 0.4  # small values are told apart; attention to most tokens is small
_KEPT, _GONE, _FUTURE = "#262626", "#E4E4E4", "#F1F1F1"


@styled
def draw_layer(seen: Inspected, layer: ObservedLayer, path: Path) -> None:
    """Write the attention maps of a layer as path.png and path.pdf."""
    assert layer.attention_HPP is not None
    maps = layer.attention_HPP.numpy()
    group = len(maps) // len(layer.kept_UT)
    columns = _columns(len(maps), group)
    rows = -(-len(maps) // columns)
    size = (DOUBLE - 0.7) / columns
    with_words = len(seen.words) <= _WORDS and columns <= 4
    height = rows * (size * 1.06 + 0.3) + 0.8 + (0.4 if with_words else 0)
    picture = figure.new(DOUBLE, height)
    grid = picture.subplots(rows, columns, squeeze=False)
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(_GAMMA, 0, 1)
    for head, axes in enumerate(grid.flat):
        if head >= len(maps):
            axes.axis("off")
            continue
        shown = _panel(axes, seen, layer, head, head // group, maps[head], norm)
        if with_words:
            _write_words(axes, seen.words, below=head + columns >= len(maps), left=head % columns == 0)
    bar = picture.colorbar(shown, ax=grid, shrink=min(1.0, 2.2 / height), aspect=18, pad=0.015)
    bar.set_label("attention", fontsize=7.5, color=INK)
    bar.set_ticks([0, 0.05, 0.25, 0.5, 1], labels=["0", "0.05", "0.25", "0.5", "1"])
    bar.ax.tick_params(labelsize=7, length=2, colors=INK)
    bar.outline.set_linewidth(0.5)
    pixel = math.ceil(len(seen.words) / PIXELS)
    cells = f"; a cell is the largest value of {pixel} x {pixel} tokens" if pixel > 1 else ""
    names = "; ".join(f"{short(name)}: {name}" for name in seen.policies if "+" in name)
    rows_and_strip = "Rows: queries, columns: keys, from the top left; strip: tokens that the KV head stores (dark)"
    text = f"{rows_and_strip}{cells}.\n{names}"
    picture.suptitle(f"{seen.heading}, layer {layer.layer}\n\n", x=0.012, ha="left", fontsize=9.5, color=INK)
    picture.text(0.012, 1 - 0.3 / height, text, fontsize=7, color=FAINT, va="top")
    figure.save(picture, path.with_suffix(".png"), figure.stamp([seen.heading, layer.layer]))


def draw_kept(seen: Inspected, folder: Path) -> None:
    """Write the kept tokens by head and over the text, the figures that a report draws of stored runs."""
    shapes = {layer.kept_UT.shape for layer in seen.layers}
    if len(shapes) == 1:  # a model whose layers differ in their heads has no common table
        mask_LUT = np.stack([layer.kept_UT.numpy() for layer in seen.layers])
        kept_heads({seen.title: mask_LUT.mean(2)}, seen.prompt, f"{len(seen.words)} tokens", folder / "kept_heads.png")
        kept = KeptTokens(seen.prompt, seen.words, mask_LUT)
        kept_text(kept, seen.title, f"{seen.prompt}, {len(seen.words)} tokens", folder / "kept_text.png")


def _columns(heads: int, group: int) -> int:
    """Return how many panels stand in a row: whole groups of query heads, and at most 8."""
    if group > 8:
        return 8
    whole = [count for count in range(group, 9, group) if count <= heads]
    wanted = 1.2 * math.sqrt(heads)
    return min(whole or [group], key=lambda count: abs(math.log(count / wanted)))


def _panel(
    axes: Axes,
    seen: Inspected,
    layer: ObservedLayer,
    head: int,
    kv_head: int,
    map_PP: NDArray[np.float32],
    norm: Normalize,
) -> AxesImage:
    """Draw the map of a query head and the strip of its KV head. Return the image, for the colour bar."""
    pixels = len(map_PP)
    future = np.triu(np.ones_like(map_PP, dtype=bool), 1)
    image = axes.imshow(np.ma.masked_array(map_PP, future), cmap="Blues", norm=norm, interpolation="none")
    kept_T = layer.kept_UT[kv_head].numpy()
    step = math.ceil(len(kept_T) / PIXELS)
    shares = np.array([kept_T[at : at + step].mean() for at in range(0, len(kept_T), step)])
    from matplotlib.colors import LinearSegmentedColormap

    strip = LinearSegmentedColormap.from_list("kept", [_GONE, _KEPT])
    low, high = pixels - 0.5 + 0.03 * pixels, pixels - 0.5 + 0.1 * pixels
    axes.imshow(shares[None], cmap=strip, vmin=0, vmax=1, extent=(-0.5, pixels - 0.5, high, low), interpolation="none")
    axes.set_xlim(-0.5, pixels - 0.5)
    axes.set_ylim(high, -0.5)
    axes.set_facecolor(_FUTURE)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
        spine.set_linewidth(0.5)
    policy = "" if layer.policies is None else f"{short(layer.policies[kv_head])}, "
    text = f"head {head} (KV {kv_head})\n{policy}{int(kept_T.sum())} of {len(kept_T)}"
    axes.set_title(text, fontsize=6.5, color=INK, pad=2, linespacing=1.1)
    return image


def _write_words(axes: Axes, words: Sequence[str], *, below: bool, left: bool) -> None:
    """Write the tokens at the axes of the outer panels."""
    texts = [word.strip().replace("\n", "\\n") or word.replace("\n", "\\n").replace(" ", "_") for word in words]
    if below:
        axes.set_xticks(range(len(texts)), texts, rotation=90, fontsize=5.5, color=INK)
    if left:
        axes.set_yticks(range(len(texts)), texts, fontsize=5.5, color=INK)
    axes.tick_params(length=0, pad=1)
