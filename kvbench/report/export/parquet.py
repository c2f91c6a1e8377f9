"""The parquet export: `samples.parquet` with one row per sample, `runs.parquet` with one row per run.

`datasets.load_dataset(FOLDER)` reads the samples, `load_dataset(FOLDER, "runs")` the runs: README.md declares both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.files import replacing, write_atomic
from kvbench.report.export.common import Written, read_runs
from kvbench.report.export.rows import RUN, SAMPLE, Row, run_row, sample_rows

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP = 2**24  # bytes in memory that are written as one row group
_CARD = """\
---
configs:
- config_name: samples
  data_files: samples.parquet
  default: true
- config_name: runs
  data_files: runs.parquet
---

# Results of kvbench

`samples.parquet` has one row per sample, `runs.parquet` one row per run; the columns `run` and `device_kind` join
them. Load them with `datasets.load_dataset(FOLDER, "samples")` and `datasets.load_dataset(FOLDER, "runs")`. Scores are
in [0, 1], times in seconds, sizes in bytes. `score` is the score that `headline` names. The columns meta, scores,
identity, scoring, versions, hardware, continued_with and more hold JSON.
"""


def write_parquet(folders: Iterable[Path], out: Path) -> Written:
    """Write the runs in `folders` to two parquet files and a card. The same runs give the same bytes."""
    runs = samples = 0
    with _table(out / "samples.parquet", SAMPLE) as sample_table, _table(out / "runs.parquet", RUN) as run_table:
        for run in read_runs(folders):
            run_table.add([run_row(run)])
            sample_table.add(list(sample_rows(run)))
            runs, samples = runs + 1, samples + len(run.samples)
    write_atomic(out / "README.md", _CARD)
    return Written(runs, samples)


class _Table:
    """A parquet file that grows by rows; they are written when there are enough for a row group."""

    def __init__(self, writer: Any, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, rows: list[Row]) -> None:
        """Add rows with all columns of the schema."""
        import pyarrow as pa

        table = pa.Table.from_pylist(rows, schema=self._schema)
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= _GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one row group."""
        if self._waiting:
            import pyarrow as pa

            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting, self._bytes = [], 0


@contextmanager
def _table(path: Path, columns: Mapping[str, str]) -> Iterator[_Table]:
    import pyarrow as pa
    import pyarrow.parquet

    text, whole, number = pa.string(), pa.int64(), pa.float64()
    types = {
        "text": text, "json": text, "integer": whole, "number": number, "texts": pa.list_(text),
        "integers": pa.list_(whole), "lists": pa.list_(pa.list_(whole)),
    }  # fmt: skip
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with replacing(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        table = _Table(writer, schema)
        yield table
        table.flush()
