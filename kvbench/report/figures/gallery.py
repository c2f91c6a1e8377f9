"""`python -m kvbench.report.figures.gallery`: docs/gallery.md, its pictures, README's table, from runs in docs/."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.common.command import Parser, command
from kvbench.common.files import write_atomic
from kvbench.report.figures.draw import FIGURES
from kvbench.report.figures.figure import stamp_of
from kvbench.report.figures.shown import Shown
from kvbench.report.grid import grid
from kvbench.report.runs import groups
from kvbench.report.suite import suite_table
from kvbench.report.suite_groups import suite_groups
from kvbench.store import StoredRun, load_numbers, load_runs

COMMAND = "python -m kvbench.report.figures.gallery"
MARKS = "<!-- make gallery: begin -->", "<!-- make gallery: end -->"  # around the table of README
_HEAD = f"""# Gallery

The figures that `kvbench report RUNS --out DIR` writes, each as PNG and PDF, one (3.3 in) or two (6.9 in) columns of a
page wide. Those below are drawn from the real results in [example_store](example_store/README.md) and
[example_kept](example_kept/README.md) by one command:

    {COMMAND}

The stores are small: they show how figures look, and rank no methods. The same store gives the same bytes. Colours are
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
        figure: its name in `kvbench.report.figures.draw.FIGURES`.
        source: how the name of its file begins, among those that the figure writes.
        store: the folder in docs/ with its runs; benchmark: how the benchmark's name begins.
        title, text: the heading, and what there is to see.
        method: the only method that is shown; None for all.
        palette: one of `kvbench.report.figures.palette.PALETTES`.
    """

    name: str
    figure: str
    source: str
    benchmark: str
    title: str
    text: str
    store: str = "example_store"
    method: str | None = None
    palette: str = "safe"


PICTURES = (
    Picture(
        "needle",
        "heatmaps",
        "ada_snapkv-b0.2-",
        "needle",
        "Needle heatmap",
        "The score of one run at each context length and depth; hatched cells have not been run. Where a cell was "
        "measured several times, a thin line at its bottom is the range from 0 to 1, and the thick part of it the 95 % "
        "interval of the mean (Wilson).",
        method="ada_snapkv",
    ),
    Picture(
        "needle_field",
        "heatmaps",
        "ada_snapkv-b0.2-",
        "needle",
        "Needle heatmap in the field's colours",
        "The same with `--palette field`: the colours of the published figures. They cannot be told apart in grey.",
        method="ada_snapkv",
        palette="field",
    ),
    Picture(
        "overview",
        "heatmaps",
        "overview",
        "needle",
        "Needle heatmaps as small multiples",
        "Methods as rows, budgets as columns, the full cache on the left. Rows that do not fit on a page go to "
        "`overview-2.png`.",
    ),
    Picture(
        "budgets",
        "budgets",
        "budgets.",
        "needle",
        "Score against budget",
        "A line per method, and the full cache dashed; methods without a budget are dotted. Up to three methods have "
        "their 95 % intervals as bands; more have bars, drawn side by side so that they can be told apart.",
    ),
    Picture(
        "budgets_methods",
        "budgets",
        "budgets_methods.",
        "needle",
        "Score against budget, a panel per method",
        "Each method in front of the others in grey, so that a sweep of all methods stays readable.",
    ),
    Picture(
        "bytes",
        "bytes",
        "bytes.",
        "ruler",
        "Score against bytes",
        "Eviction and quantisation on one axis: what is held after compression, keys and values and what a store or a "
        "decode policy must know of each token. The front joins the methods that no other beats in as few bytes. A "
        "method whose samples do not differ has no bar.",
    ),
    Picture(
        "costs",
        "costs",
        "costs.",
        "needle",
        "Memory and latency",
        "Bytes that are held, time to the first token by its parts, time per output token.",
    ),
    Picture(
        "kept_heads",
        "kept_heads",
        "kept_heads-b0.2.",
        "needle",
        "Kept tokens by layer and head",
        "How methods spread the same budget, as measured: SnapKV alike over all heads, PyramidKV less from layer to "
        "layer, Ada-SnapKV by head. Grey bars are the means of the "
        "layers, each panel with a scale of its own; the dotted line is the mean of all layers.",
    ),
    Picture(
        "kept_text",
        "kept_text",
        "kept_text-ada_snapkv-b0.2-",
        "needle",
        "Kept tokens over the text",
        "Which words survived, and in which layers. Runs with `save.kept=true` store which tokens each head keeps.",
        store="example_kept",
        method="ada_snapkv",
    ),
)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Write the gallery. Returns the exit code, see `kvbench.common.command`."""
    what = "docs/gallery.md, its pictures, and the table of README.md, from the runs that docs/ holds."
    parser = Parser(prog=COMMAND, description=what)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the stores are; default: docs")
    arguments = parser.parse_args(argv)
    for path in gallery(arguments.docs, arguments.docs):
        print(path)
    readme = arguments.docs.absolute().parent / "README.md"
    old = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    new = with_table(old, arguments.docs)
    if new != old:
        write_atomic(readme, new)
        print(readme)
    return 0


def with_table(readme: str, stores: Path) -> str:
    """Return the text of README.md with the table of the needle runs below `stores` between its marks, if any."""
    head, begin, rest = readme.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not end:
        return readme
    return f"{head}{begin}\n{grid(load_numbers(stores / 'example_store', 'needle'))}\n{end}{tail}"


def gallery(stores: Path, docs: Path) -> list[Path]:
    """Write gallery.md and its pictures, and return the paths of those that are new or show something else.

    Raises ValueError where the runs below `stores` do not give one of the pictures.
    """
    changed = []
    runs = {name: load_runs(stores / name, bulky=False) for name in dict.fromkeys(each.store for each in PICTURES)}
    for picture in PICTURES:
        path = docs / "gallery" / f"{picture.name}.png"
        with tempfile.TemporaryDirectory() as folder:
            drawn = _draw(picture, runs[picture.store], Path(folder))
            if stamp_of(path) != stamp_of(drawn):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(drawn, path)
                changed.append(path)
    write_atomic(docs / "gallery.md", text())
    return changed


def _draw(picture: Picture, runs: Sequence[StoredRun], folder: Path) -> Path:
    """Draw a picture into `folder`, of the largest table of its benchmark."""
    of_benchmark = [run for run in runs if run.manifest["label"]["benchmark"].startswith(picture.benchmark)]
    tables = [*groups([run for run in of_benchmark if run.manifest["part"] is None])]
    tables += suite_groups([run for run in of_benchmark if run.manifest["part"] is not None])
    if not tables:
        raise ValueError(f"{picture.store}: no runs of {picture.benchmark}, so there is no picture {picture.name}")
    group = max(tables, key=len)
    manifest = group[0].manifest
    place = manifest["part"]
    shown = Shown(
        [run for run in group if picture.method in (None, run.manifest["label"]["method"])],
        None if place is None else suite_table(group),
        f"{manifest['label']['benchmark'] if place is None else place['suite']}, {manifest['label']['model']}",
        f"{manifest['identity']['dtype']}, {manifest['device']}",
        folder,
        palette=picture.palette,
    )
    for path in FIGURES[picture.figure](shown):
        if path.name.startswith(picture.source):
            return path
    raise ValueError(f"{picture.store}: its runs give no {picture.source}*, so there is no picture {picture.name}")


def text() -> str:
    """Return the content of gallery.md."""
    parts = [f"\n## {each.title}\n\n{each.text}\n\n![{each.title}](gallery/{each.name}.png)\n" for each in PICTURES]
    return _HEAD + "".join(parts) + _TAIL


if __name__ == "__main__":
    sys.exit(main())
