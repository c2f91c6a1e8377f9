"""A W&B report of a sweep: text, charts, heatmaps, figures and tables. Written against wandb-workspaces 0.4.

`build` needs no network: charts and tables name what was logged, and W&B fills them in. `save` needs one, and a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kvbench.common.text import one_line
from kvbench.report.formats import escaped
from kvbench.report.loggers.sinks import Overview, Section

_WIDTH = 24  # columns of a panel grid
_LONGEST_TITLE = 128  # characters, of W&B
_MOST_BARS = 100  # of a chart, of W&B
_COLUMNS = ("score", "kept_share", "held_share", "ttft_s", "tpot_s", "oom", "failed")
_CHARTS = {  # metric: title of its bar chart
    "score": "Score",
    "held_bytes": "Bytes that the cache holds",
    "held_share": "Bytes, as a share of the full cache's",
    "kept_share": "Kept tokens, as a share of what was compressed",
    "ttft_s": "Time to first token (s)",
    "tpot_s": "Time per output token (s)",
    "oom": "Samples out of memory",
    "failed": "Samples with an output that was not finite",
}
_MEANINGS = {  # metric or its prefix: what it means
    "score": "the headline score, the mean over samples; for a suite the mean over its datasets",
    "score/": "`score/NAME`: the headline score of the dataset NAME",
    "category/": "`category/NAME`: the mean over the datasets of the category NAME",
    "scores/": "`scores/NAME`: the mean of another metric",
    "kept_share": "measured tokens per KV head after compression, as a share of what was compressed",
    "held_bytes": "bytes held after compression: keys and values, and what a store or a policy knows of each token",
    "held_share": "these bytes as a share of the full cache's keys and values",
    "ttft_s": "time to first token, of the batch that a sample ran in; samples that share a prefill share its time",
    "tpot_s": "time per output token, of that batch",
    "recorded": "samples with a result; `oom` ran out of memory, `failed` had an output that was not finite",
}


def build(overview: Overview, project: str, entity: str) -> Any:
    """Return the report (`wandb_workspaces.reports.v2.Report`), not saved yet.

    Args:
        entity: the owner of the project; "" if the report is only to be looked at.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.MarkdownBlock(_introduction(overview)), wr.CodeBlock(overview.command, language=None)]
    if overview.shown:
        panels = _media(overview.shown, "Figures", run_axis=False)
        blocks += [wr.H2("All variants"), _grid("sweep", _with_ids([overview.sweep_id]), panels, hidden=True)]
    for section in overview.sections:
        name = one_line(f"{section.benchmark}, {section.model}")
        blocks += [wr.H2(name), wr.MarkdownBlock("\n".join(f"- {escaped(note)}" for note in section.notes))]
        panels = [*_charts(section), *_media(section.shown, "What each KV head kept", run_axis=True)]
        blocks.append(_grid(name, _filters(overview, section), panels, columns=_columns(section)))
    title = one_line(f"kvbench: {overview.title}")[:_LONGEST_TITLE]
    about = f"{sum(len(section.ids) for section in overview.sections)} variants, from the results that kvbench stored"
    return wr.Report(project=project, entity=entity, title=title, description=about, blocks=blocks, width="fluid")


def save(report: Any, before: str) -> Any:
    """Save a report to W&B, in place of the one of the same sweep if there is one. Return the report with its id.

    Args:
        before: the id that it had when it was saved last; "" if it never was. A report of the same title is replaced
            as well: another machine may have saved it.
    """
    import wandb

    api = wandb.Api()
    report.entity = report.entity or api.default_entity
    there = [(other.id, other.display_name) for other in api.reports(f"{report.entity}/{report.project}")]
    alike = [id for id, title in there if title == report.title]
    report.id = before if before in dict(there) else next(iter(alike), "")
    return report.save()


def _introduction(overview: Overview) -> str:
    known = {metric for section in overview.sections for metric in section.metrics}
    meanings = []
    for name, text in _MEANINGS.items():
        if name.endswith("/") and any(metric.startswith(name) for metric in known):
            meanings.append(f"- {text}")
        elif name in known:
            meanings.append(f"- `{name}`: {text}")
    return (
        "Each W&B run below is a variant: a method under a budget. Charts and tables follow what is logged. "
        "The report is written by kvbench, again whenever the sweep has grown; what is edited here is lost then, so "
        "clone it first.\n\n**What the columns mean**\n\n" + "\n".join(meanings) + "\n\nThe command:"
    )


def _filters(overview: Overview, section: Section) -> str:
    """Return the filter for the entries of a section: as they are grouped in W&B, or else by their ids."""
    if overview.group is None or not (section.is_named or len(overview.sections) == 1):
        return _with_ids(section.ids)
    parts = [f"Metric('Group') == {_literal(overview.group)}", "Metric('JobType') == 'benchmark'"]
    if len(overview.sections) > 1:
        parts.append(f"Config('benchmark') == {_literal(section.benchmark)}")
        parts.append(f"Config('model') == {_literal(section.model)}")
    return " and ".join(parts)


def _with_ids(ids: Sequence[str]) -> str:
    return f"Metric('ID') in [{', '.join(map(_literal, ids))}]"


def _literal(text: str) -> str:
    """Return a text for a filter, all but letters and digits by number: `=`, `<` and quotes would be syntax."""
    return "'" + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + "'"


def _columns(section: Section) -> list[str]:
    """Return the columns of the table of runs."""
    shown = [f"summary:{metric}" for metric in _COLUMNS if metric in section.metrics]
    return ["config:method.value", "config:budget_label.value", *shown]


def _grid(name: str, filters: str, panels: Sequence[Any], columns: Sequence[str] = (), hidden: bool = False) -> Any:
    """Return a grid of panels from left to right, for the runs of this project that a filter lets through."""
    import wandb_workspaces.reports.v2 as wr

    x = y = tall = 0
    for panel in panels:
        wide = panel.layout.w
        if x + wide > _WIDTH:
            x, y, tall = 0, y + tall, 0
        panel.layout.x, panel.layout.y = x, y
        x, tall = x + wide, max(tall, panel.layout.h)
    order = [wr.OrderBy(wr.SummaryMetric("score"))] if columns else []
    runs = wr.Runset(name=name, filters=filters, order=order, pinned_columns=list(columns))
    return wr.PanelGrid(runsets=[runs], panels=list(panels), hide_run_sets=hidden)


def _charts(section: Section) -> Iterator[Any]:
    """Yield score against bytes, then a bar chart per metric: score, costs, categories, datasets, other metrics."""
    import wandb_workspaces.reports.v2 as wr

    legend = "${config:method} ${config:budget_label}" if section.is_plain else "${run:displayName}"
    known = set(section.metrics)
    if {"score", "held_bytes"} <= known:
        yield wr.ScatterPlot(
            title="Score against bytes",
            x=wr.SummaryMetric("held_bytes"),
            y=wr.SummaryMetric("score"),
            log_x=True,
            legend_template=legend,
            layout=wr.Layout(w=12, h=10),
        )
    titles = {name: title for name, title in _CHARTS.items() if name in known}
    for prefix in ("category/", "score/", "scores/"):
        titles |= {name: one_line(name) for name in section.metrics if name.startswith(prefix)}
    for name, title in titles.items():
        yield wr.BarPlot(
            title=title,
            metrics=[name],
            legend_template=legend,
            max_runs_to_show=_MOST_BARS,
            max_bars_to_show=_MOST_BARS,
            layout=wr.Layout(w=12 if name == "score" else 8, h=10 if name == "score" else 8),
        )


def _media(shown: Sequence[str], rest: str, run_axis: bool) -> list[Any]:
    """Return a panel for the needle heatmaps, one for all other images (`rest`), and one per table."""
    import wandb_workspaces.reports.v2 as wr

    tables = [key for key in shown if key.partition("-")[0] in ("samples", "results")]
    images = [key for key in shown if key not in tables]
    needles = [key for key in images if run_axis and key.startswith("needle/")]
    axis: dict[str, Any] = {"gallery_axis": "run"} if run_axis else {}
    panels = []
    for title, keys in (("Needle heatmaps", needles), (rest, [key for key in images if key not in needles])):
        if keys:
            wide = wr.Layout(w=_WIDTH, h=14)
            panels.append(wr.MediaBrowser(title=title, media_keys=keys, num_columns=3, layout=wide, **axis))
    return panels + [wr.WeavePanelSummaryTable(table_name=key, layout=wr.Layout(w=_WIDTH, h=14)) for key in tables]
