"""The content of a sweep's report: its entries by table, and the names of all that was logged of them.

It is made from manifests and ledgers alone, so it names nothing that is not in the logger, and no record is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvbench.common.kinds import is_number
from kvbench.report.footnotes import footnotes
from kvbench.report.loggers.entries import Entry
from kvbench.report.loggers.ledger import Ledger
from kvbench.report.loggers.sinks import Overview, Section
from kvbench.report.loggers.sweeps import Sweep
from kvbench.report.runs import names, setting, table_mark
from kvbench.report.suite_groups import suite_setting
from kvbench.store import Manifest


def overview(
    sweep: Sweep,
    own: Ledger,
    entries: Sequence[tuple[Entry, Ledger]],
    manifests: Mapping[Path, Manifest],
) -> Overview:
    """Return the overview of a sweep, with the entries that are complete in the logger.

    Args:
        own: the ledger of the sweep's own entry.
        entries: all entries of the sweep with their ledgers.
        manifests: run folder -> manifest, of all folders of the entries.
    """
    tables: dict[str, list[tuple[Entry, Ledger]]] = {}
    for entry, ledger in entries:
        if ledger.complete:
            shared = setting(entry.manifest) if entry.manifest["part"] is None else suite_setting(entry.manifest)
            tables.setdefault(table_mark(shared), []).append((entry, ledger))
    heads = [(inside[0][0].benchmark, inside[0][0].manifest["label"]["model"]) for inside in tables.values()]
    sections = [
        _section(inside, manifests, is_named=heads.count(head) == 1)
        for head, inside in zip(heads, tables.values(), strict=True)
    ]
    return Overview(
        mark=sweep.mark,
        title=sweep.group,
        command=sweep.command,
        group=sweep.group if {ledger.group for _, ledger in entries if ledger.complete} == {sweep.group} else None,
        sweep_id=own.id,
        shown=tuple(sorted(own.shown)) if own.complete else (),
        sections=tuple(sections),
    )


def _section(inside: Sequence[tuple[Entry, Ledger]], manifests: Mapping[Path, Manifest], is_named: bool) -> Section:
    first = inside[0][0]
    labels = [entry.manifest["label"] for entry, _ in inside]
    numbers = {
        key
        for _, ledger in inside
        for key, value in ledger.summary.items()
        if is_number(value) and (value or key not in ("oom", "failed"))
    }
    datasets = {key for key in numbers if key.startswith("score/")}
    if len(datasets) == 1:  # it is the score itself
        numbers -= datasets
    return Section(
        benchmark=first.benchmark,
        model=first.manifest["label"]["model"],
        ids=tuple(sorted(ledger.id for _, ledger in inside)),
        is_named=is_named,
        is_plain=names([entry for entry, _ in inside]) == [label["method"] for label in labels],
        metrics=tuple(sorted(numbers)),
        shown=tuple(sorted({key for _, ledger in inside for key in ledger.shown})),
        notes=tuple(footnotes([manifests[folder] for entry, _ in inside for folder in entry.folders])),
    )
