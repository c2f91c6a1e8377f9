"""RULER (arXiv 2404.06654): thirteen synthetic tasks of any length, generated as NVIDIA/RULER c3f5e3b4 does.

    generate(task, length, tokenizer, ...)   records in upstream's format; rows(...) yields them one by one
    cached(task, length, tokenizer, ...)     the same, kept under <KVBENCH_CACHE>/ruler
    Sources.load(folder)                     upstream's texts, or kvbench's own: .version, .checksums(task)
    split(task, record)                      context, question, answer prefix
    load_records(path, task)                 files of upstream, or of the Hugging Face data set; see records_file
    TASKS, TEMPLATES                         what there is: metric, answer length, arguments; wrappers by name

With upstream's files a record is upstream's, byte for byte. Two things are different on purpose. Where upstream loops
for ever (a text that cannot get short enough), sizes go on falling to one unit, or the documents that hold the answer,
and then there is an error. And cwe at about 128k tokens draws from english_words.json only if that file is there.

`python -m kvbench.benchmarks.ruler` writes the files. Metrics are in `kvbench.metrics.ruler`.
"""

from kvbench.benchmarks.ruler.caching import cached
from kvbench.benchmarks.ruler.generation import FITS, VERSION, generate, rows
from kvbench.benchmarks.ruler.records import load_records, records_file, save_records, split
from kvbench.benchmarks.ruler.sources import Sources
from kvbench.benchmarks.ruler.tasks import TASKS, TEMPLATES, Task

__all__ = [
    "FITS",
    "TASKS",
    "TEMPLATES",
    "VERSION",
    "Sources",
    "Task",
    "cached",
    "generate",
    "load_records",
    "records_file",
    "rows",
    "save_records",
    "split",
]
