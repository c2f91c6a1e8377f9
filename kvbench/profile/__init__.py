"""Time and memory of methods against the full cache: `python -m kvbench.profile`. Importing this needs no torch."""
