"""The content of entries, without a logger: what is left out, and when an entry is out of date."""

from __future__ import annotations

from pathlib import Path

from kvbench.report.loggers.content import summary
from kvbench.report.loggers.ledger import stamp
from kvbench.store import load_run
from tests.helpers.store_runs import open_run, record


def test_times_of_different_hardware_have_no_mean(tmp_path: Path) -> None:
    for names, hardware in (("ab", "GPU A"), ("c", "GPU B")):
        with open_run(tmp_path, hardware={"name": hardware}) as run:
            for name in names:
                run.append(record(name))
        values = summary([load_run(run.path)])
        assert ("ttft_s" in values) == (hardware == "GPU A") and values["score/needle"] == 1.0


def test_a_stamp_changes_with_the_status_of_a_shard(tmp_path: Path) -> None:
    with open_run(tmp_path, shard=(1, 2)) as run:
        before = stamp([run.path], None)
        assert stamp([run.path], None) == before
        run.set_status("failed", error="no room")
        assert stamp([run.path], None) != before
