"""The data of published benchmarks: fetching it, checking it, finding it. `python -m kvbench.data --help`."""
