"""A suite's table in words: wide for files, and for a terminal in the form that fits into its width."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.report.formats import Cell, Cells, interval, is_within, markdown, number, percent
from kvbench.report.runs import marked
from kvbench.report.suite import BUCKETS, DatasetCell, MacroCell, MeanCell, SuiteRow, SuiteTable

_BOUNDS = ("Δ full", "95% from", "95% to")
_BUCKET_LINES = 60  # of a bucket table on the console; a longer one is in the files, its means are printed


def wide(table: SuiteTable) -> list[Cells]:
    """Return a row per method and budget: datasets, flat means, difference, what was kept."""
    names = [column["name"] for column in table["columns"]]
    return [
        {
            "method": _name(row),
            "budget": row["budget"],
            **{name: _emphasis(row, name, _dataset(row["datasets"].get(name))) for name in names},
            **summary(table, row),
        }
        for row in table["rows"]
    ]


def _name(row: SuiteRow) -> str:
    return marked(row["method"], row["mixed"])


def _emphasis(row: SuiteRow, key: str, text: str) -> Cell:
    return Cell(text, is_best=key in row["best"], is_grey=is_within(row["differences"].get(key)))


def summary(table: SuiteTable, row: SuiteRow) -> dict[str, str]:
    """Return the columns that follow the datasets of a row."""
    oom = any(other["oom"] for other in table["rows"])
    failed = any(other["failed"] for other in table["rows"])
    several = len({other["hardware"] for other in table["rows"]}) > 1
    done = row["n"] + row["oom"] + row["failed"]
    tpot_ms = None if row["tpot_s"] is None else 1000 * row["tpot_s"]
    return {
        **{name: _emphasis(row, f"means/{name}", mean(row["means"][name])) for name in shown_means(table)},
        "Δ full [95%]": Cell(interval(row["difference"]), is_grey=is_within(row["difference"])),
        "n": f"{done}" if done == row["num_samples"] else f"{done}/{row['num_samples']}",
        **({"oom": str(row["oom"])} if oom else {}),
        **({"failed": str(row["failed"])} if failed else {}),
        "kept/head": number(row["kept_tokens"], "{:.0f}") + percent(row["kept_share"]),
        "KV MiB": number(row["held_mib"], "{:.2f}") + percent(row["held_share"]),
        "TTFT s": number(row["ttft_s"], "{:.2f}"),
        "TPOT ms": number(tpot_ms, "{:.1f}"),
        **({"hardware": row["hardware"] or "–"} if several else {}),
    }


def deltas(table: SuiteTable) -> list[Cells]:
    """Return the differences to the full cache with their intervals: by dataset, category and average.

    [] without a full cache, or with the full cache alone.
    """
    heads = {column["name"]: column["name"] for column in table["columns"]}
    for macro, cell in table["rows"][0]["macros"].items():
        heads |= {f"categories/{macro}/{name}": f"{name} ({macro})" for name in cell["categories"]}
        heads[f"macros/{macro}"] = macro
    heads |= {f"means/{name}": name for name in shown_means(table)}
    rows = [row for row in table["rows"] if row["differences"]]
    lines: list[Cells] = []
    for row in rows:
        line = {"method": _name(row), "budget": row["budget"]}
        for key, head in heads.items():
            difference = row["differences"].get(key)
            line[f"Δ {head}"] = Cell(interval(difference), is_grey=is_within(difference))
        lines.append(line)
    return lines


def shown_means(table: SuiteTable) -> list[str]:
    """Return the leading mean, and those of other columns: with 16 datasets, a mean of 21 says no more."""
    members = {
        name: [column["name"] for column in table["columns"] if name in column["means"]]
        for name in table["rows"][0]["means"]
    }
    others = [name for name in members if members[name] != members[table["lead"]]]
    return [table["lead"], *others]


def mean(cell: MeanCell) -> str:
    """Return a flat mean; where datasets are missing, how many there are."""
    if cell["score"] is None or cell["n"] == cell["of"]:
        return number(cell["score"], "{:.2f}")
    return f"{cell['score']:.2f} ({cell['n']}/{cell['of']})"


def _dataset(cell: DatasetCell | None) -> str:
    """Return a dataset's score; a star where samples are missing or ran out of memory."""
    if cell is None or cell["score"] is None:
        return "–"
    return f"{cell['score']:.2f}" + ("" if cell["n"] == cell["num_samples"] else "*")


def categories(table: SuiteTable) -> list[list[Cells]]:
    """Return a small table per macro average: the means of its categories, and their mean."""
    return [
        [
            {
                "method": _name(row),
                "budget": row["budget"],
                **{
                    name: _emphasis(row, f"categories/{macro}/{name}", mean(cell))
                    for name, cell in row["macros"][macro]["categories"].items()
                },
                macro: _emphasis(row, f"macros/{macro}", _macro(row["macros"][macro])),
            }
            for row in table["rows"]
        ]
        for macro in table["rows"][0]["macros"]
    ]


def _macro(cell: MacroCell) -> str:
    text = number(cell["score"], "{:.2f}")
    if cell["score"] is None or cell["complete"]:
        return text
    missing = f"{cell['n']}/{cell['of']}" if cell["n"] < cell["of"] else f"of {cell['datasets']} sets"
    return f"{text} ({missing})"


def buckets(table: SuiteTable) -> list[Cells]:
    """Return scores by dataset and length bucket, then their means over datasets; [] where samples carry no buckets."""
    lines: list[Cells] = []
    for row in table["rows"]:
        head = {"method": _name(row), "budget": row["budget"]}
        for dataset, cells in row["buckets"].items():
            lines.append({**head, "dataset": dataset, **{key: number(cells[key], "{:.2f}") for key in BUCKETS}})
        if row["buckets"]:
            lines.append({**head, "dataset": "mean", **_bucket_means(row)})
    return lines


def _bucket_means(row: SuiteRow) -> dict[str, str]:
    columns = {key: [cells[key] for cells in row["buckets"].values()] for key in BUCKETS}
    known = {key: [score for score in scores if score is not None] for key, scores in columns.items()}
    return {key: number(sum(v) / len(v) if v else None, "{:.2f}") for key, v in known.items()}


def tables(table: SuiteTable) -> list[list[Cells]]:
    """Return all of it: the wide table, the categories, the differences, the buckets."""
    return [part for part in (wide(table), *categories(table), deltas(table), buckets(table)) if part]


def terminal(table: SuiteTable, width: int) -> str:
    """Return the most readable form that fits: rows are methods, columns are methods, or else rows in pieces."""
    extra = [_for_terminal(buckets(table))] if table["suite"].endswith("-e") else []
    small = [text for text in (*map(markdown, categories(table)), *extra) if text]
    whole = [markdown(wide(table)), *small]
    if all(_width(text) <= width for text in whole):
        return "\n\n".join(whole)
    turned = transposed(table)
    if all(_width(text) <= width for text in (turned, *extra)):
        return "\n\n".join(filter(None, (turned, *extra)))
    sums = summary(table, table["rows"][0])
    in_short = [_without(row, {column["name"] for column in table["columns"]}) for row in wide(table)]
    datasets = [_without(row, set(sums)) for row in wide(table)]
    pieces = [piece for rows in (in_short, datasets, *categories(table)) for piece in _pieces(rows, width)]
    return "\n\n".join(filter(None, (*pieces, *extra)))


def _without(row: Cells, names: set[str]) -> Cells:
    return {name: text for name, text in row.items() if name not in names}


def _for_terminal(rows: Sequence[Cells]) -> str:
    if len(rows) > _BUCKET_LINES:
        rows = [row for row in rows if row["dataset"] == "mean"]
    return markdown(rows) if rows else ""


def _width(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def transposed(table: SuiteTable) -> str:
    """Return a column per method and budget. The datasets of a category stand together, their mean below them."""
    rows, columns = table["rows"], table["columns"]
    macros = rows[0]["macros"]
    lines: list[tuple[str, Sequence[str]]] = [("budget", [row["budget"] for row in rows])]
    for category in dict.fromkeys(column["category"] for column in columns):
        names = [column["name"] for column in columns if column["category"] == category]
        lines += [(name, [_emphasis(row, name, _dataset(row["datasets"].get(name))) for row in rows]) for name in names]
        averaged = [macro for macro in macros if category in macros[macro]["categories"]]
        for macro in averaged:
            label = f"= {category}" if len(averaged) == 1 else f"= {category}, {macro}"
            key = f"categories/{macro}/{category}"
            cells_of = [(row, row["macros"][macro]["categories"][category]) for row in rows]
            lines.append((label, [_emphasis(row, key, mean(cell)) for row, cell in cells_of]))
    for macro in macros:
        key = f"macros/{macro}"
        lines.append((f"= {macro}", [_emphasis(row, key, _macro(row["macros"][macro])) for row in rows]))
    last = [summary(table, row) for row in rows]
    for name in last[0]:
        if name.startswith("Δ"):
            bounds = [_bounds(row) for row in rows]
            lines += [(label, [texts[i] for texts in bounds]) for i, label in enumerate(_BOUNDS)]
        elif name == "kept/head":
            lines.append((name, [number(row["kept_tokens"], "{:.0f}") for row in rows]))
            lines.append(("kept", [percent(row["kept_share"]).strip(" ()") or "–" for row in rows]))
        elif name == "KV MiB":
            lines.append((name, [number(row["held_mib"], "{:.2f}") for row in rows]))
            lines.append(("KV", [percent(row["held_share"]).strip(" ()") or "–" for row in rows]))
        else:
            label = f"= {name}" if name in rows[0]["means"] else name
            lines.append((label, [texts[name] for texts in last]))
    cells = [{"dataset": label, **{str(i): text for i, text in enumerate(texts)}} for label, texts in lines]
    return markdown(cells, ["dataset", *(_name(row) for row in rows)], narrow=True)


def _bounds(row: SuiteRow) -> tuple[str, str, str]:
    """Return difference and interval of a row; without an interval, the reason stands in place of its lower end."""
    difference = row["difference"]
    if difference is None:
        return "–", "–", "–"
    low = difference["reason"] or number(difference["low"], "{:+.2f}")
    return f"{difference['mean']:+.2f}", low, number(difference["high"], "{:+.2f}")


def _pieces(rows: Sequence[Cells], width: int) -> list[str]:
    """Return tables of about as many columns each as fit, all with method and budget."""
    head = ("method", "budget")
    columns = [name for name in rows[0] if name not in head]
    for number_of in range(1, len(columns) + 1):
        size = -(-len(columns) // number_of)
        parts = [columns[start : start + size] for start in range(0, len(columns), size)]
        pieces: list[str] = [
            markdown([{name: row[name] for name in (*head, *part)} for row in rows], narrow=True) for part in parts
        ]
        if all(_width(piece) <= width for piece in pieces):
            break
    return pieces
