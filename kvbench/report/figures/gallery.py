"""`python -m kvbench.report.figures.gallery`: docs/gallery.md and its pictures, from the runs in docs/example_store."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.common.command import Parser, command
from kvbench.common.files import write_atomic
from kvbench.report.figures.figure import stamp_of
from kvbench.report.present import present
from kvbench.store import load_runs

COMMAND = "python -m kvbench.report.figures.gallery"
_HEAD = f"""# Gallery

The figures that `kvbench report RUNS --out DIR` writes, each as PNG and PDF, one (3.3 in) or two (6.9 in) columns of a
page wide. Those below are drawn from the real results in [example_store](example_store/README.md) by one command:

    {COMMAND}

The store is small: it shows how figures look, and ranks no methods. The same store gives the same bytes. Colours are
safe for colour-blind readers and can be told apart in grey; `--palette field` gives red and green to heatmaps.
"""
_TAIL = """
## Attention maps

Attention needs the model, so it comes from a command of its own: `kvbench inspect model=smollm2_135m method=ada_snapkv
budget=0.2 benchmark=needle show=2 layers=[0,15,29]` prefills one prompt and draws a map for each query head, with the
tokens that its KV head stores below it, together with the kept tokens by head and over the text as above.
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        name: of the file in docs/gallery, without its suffix.
        source: the file that a report writes, as a pattern below its folder.
        title, text: the heading, and what there is to see.
        palette: one of `kvbench.report.figures.palette.PALETTES`.
    """

    name: str
    source: str
    title: str
    text: str
    palette: str = "safe"


PICTURES = (
    Picture(
        "needle",
        "needle-*/ada_snapkv-b0.2-*.png",
        "Needle heatmap",
        "The score of one run at each context length and depth. Where a cell was measured several times, the thin line "
        "is the range from 0 to 1 and the thick part of it the 95 % interval of the mean (Wilson).",
    ),
    Picture(
        "needle_field",
        "needle-*/ada_snapkv-b0.2-*.png",
        "Needle heatmap in the field's colours",
        "The same with `--palette field`: the colours of the published figures. They cannot be told apart in grey.",
        palette="field",
    ),
    Picture(
        "overview",
        "needle-*/overview.png",
        "Needle heatmaps as small multiples",
        "Methods as rows, budgets as columns, the full cache on the left. Rows that do not fit on a page go to "
        "`overview-2.png`.",
    ),
    Picture(
        "budgets",
        "needle-*/budgets.png",
        "Score against budget",
        "A line per method, and the full cache dashed. Up to three methods have their 95 % intervals as bands; more "
        "have bars, drawn side by side so that they can be told apart.",
    ),
    Picture(
        "budgets_methods",
        "needle-*/budgets_methods.png",
        "Score against budget, a panel per method",
        "The same with bands: each method in front of the others in grey. A sweep of all methods stays readable.",
    ),
    Picture(
        "bytes",
        "ruler*/bytes.png",
        "Score against bytes",
        "Eviction and quantisation on one axis: what keys and values take after compression. The front joins the "
        "methods that no other beats in as few bytes.",
    ),
    Picture(
        "costs",
        "needle-*/costs.png",
        "Memory and latency",
        "Bytes of keys and values, time to the first token by its parts, time per output token.",
    ),
    Picture(
        "kept_heads",
        "needle-*/kept_heads-b0.2.png",
        "Kept tokens by layer and head",
        "How methods spread the same budget, as measured: SnapKV alike over all heads, PyramidKV less from layer to "
        "layer, Ada-SnapKV by head. Bars are the means of the layers.",
    ),
    Picture(
        "kept_text",
        "needle-*/kept_text-ada_snapkv-b0.2-*.png",
        "Kept tokens over the text",
        "Which words survived, and in which layers. Runs with `save.kept=true` store which tokens each head keeps.",
    ),
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Write the gallery. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(prog=COMMAND, description="docs/gallery.md and its pictures, from stored runs.")
    parser.add_argument("--store", type=Path, default=Path("docs/example_store"), help="the runs; default: %(default)s")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where gallery.md is written; default: docs")
    arguments = parser.parse_args(argv)
    for path in gallery(arguments.store, arguments.docs):
        print(path)
    return 0


def gallery(store: Path, docs: Path) -> list[Path]:
    """Write gallery.md and its pictures, and return the paths of those that are new or have changed.

    Raises ValueError where the runs do not give one of the pictures.
    """
    runs = load_runs(store)
    if not runs:
        raise ValueError(f"--store {store}: no runs there")
    changed = []
    with tempfile.TemporaryDirectory() as folder:
        for palette in dict.fromkeys(picture.palette for picture in PICTURES):
            out = Path(folder) / palette
            with contextlib.redirect_stdout(io.StringIO()):
                present(runs, out, palette=palette)
            for picture in (picture for picture in PICTURES if picture.palette == palette):
                changed += _copy(picture, out, store, docs / "gallery" / f"{picture.name}.png")
    write_atomic(docs / "gallery.md", text())
    return changed


def _copy(picture: Picture, out: Path, store: Path, path: Path) -> list[Path]:
    """Copy a picture from the report to its place, unless that one shows the same."""
    sources = sorted(out.glob(picture.source))
    if not sources:
        raise ValueError(f"--store {store}: its report has no {picture.source}")
    if stamp_of(path) == stamp_of(sources[0]):
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sources[0], path)
    return [path]


def text() -> str:
    """Return the content of gallery.md."""
    parts = [f"\n## {each.title}\n\n{each.text}\n\n![{each.title}](gallery/{each.name}.png)\n" for each in PICTURES]
    return _HEAD + "".join(parts) + _TAIL


if __name__ == "__main__":
    sys.exit(main())
