"""What the C functions kvb_<op> take: p a pointer (or the stream), l an int64, i an int, f a float, d a double.

Those of SIGNATURES return an error code, those of SIZES bytes of workspace, as an int64.
"""

from __future__ import annotations

SIGNATURES = {
    "window_score": "pllpllplllllllfiilppip",
    "row_lse": "pllpllllllfpip",
    "column_sums": "pllpllplllllfpip",
    "select": "pllldipppp",
    "ragged_gather": "ppllllllppplppip",
    "ragged_relayout": "ppppppllppip",
}
SIZES = {
    "window_score_workspace": "llllii",
    "select_workspace": "l",
}
