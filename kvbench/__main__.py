"""The entry point of `python -m kvbench` and of the `kvbench` command."""

from __future__ import annotations

import sys

from kvbench.cli.verbs import main

if __name__ == "__main__":
    sys.exit(main())
