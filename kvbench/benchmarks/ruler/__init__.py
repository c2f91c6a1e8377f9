"""RULER (arXiv 2404.06654): thirteen synthetic tasks of any length, generated as NVIDIA/RULER c3f5e3b4 does.

    RulerRequest(task, length, tokenizer, ...)   what to generate
    generate(request), rows(request)             records in upstream's format, all at once or as they are generated
    cached(request)                              the same, kept under <KVBENCH_CACHE>/ruler
    Sources.load(folder)                         upstream's texts, or kvbench's own: .version, .checksums(task)
    split(task, record)                          context, question, answer prefix
    load_records(path, task)                     files of upstream, or of the Hugging Face data set; see records_file
    TASKS, TEMPLATES                             the tasks with metric and answer length; wrappers by name

With upstream's files a record is upstream's, byte for byte. Two things differ on purpose. Where upstream loops for ever
(a text that cannot get short enough), sizes go on falling to one unit, or to the documents that hold the answer (in
HotpotQA those with the supporting facts), and then there is an error. And cwe at about 128k tokens draws from
english_words.json only if that file is there.

`kvbench data ruler` gets the sources, `python -m kvbench.benchmarks.ruler` writes files. Metrics are in
`kvbench.metrics.ruler`.
"""

from kvbench.benchmarks.ruler.caching import cached
from kvbench.benchmarks.ruler.files import load_records, records_file, save_records, split
from kvbench.benchmarks.ruler.generation import VERSION, generate, rows
from kvbench.benchmarks.ruler.request import FITS, RulerRequest
from kvbench.benchmarks.ruler.sources import Sources
from kvbench.benchmarks.ruler.tasks import TASKS, TEMPLATES, Task

__all__ = [
    "FITS",
    "TASKS",
    "TEMPLATES",
    "VERSION",
    "RulerRequest",
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
