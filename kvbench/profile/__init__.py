"""Time and memory of methods against the full cache: `kvbench profile`. Importing this needs no torch."""
