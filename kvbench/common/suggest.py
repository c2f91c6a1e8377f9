"""The hint at the end of a message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "snapkv"?' for the nearest known word, or the list of known words."""
    known = sorted(known)
    near = [k for k in known if word and k.startswith(str(word))]
    near = near or difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}." if known else ""
