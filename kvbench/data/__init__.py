"""The data of published benchmarks: fetching it, checking it, finding it. `kvbench data --help`."""
