"""What the C functions kvb_<op> take: p a pointer (or the stream), l an int64, i an int, f a float."""

from __future__ import annotations

SIGNATURES: dict[str, str] = {}
