"""Errors of sweeps; here, because `python -m kvbench` handles them and imports nothing heavy."""

from __future__ import annotations


class Unfinished(Exception):
    """Runs that were computed elsewhere did not end well. The message says which, and is for the user."""
