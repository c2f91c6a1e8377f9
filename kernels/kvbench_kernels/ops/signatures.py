"""Argument types of the C functions kvb_<op>, a letter each.

p is a pointer (or the stream), l an int64, i an int, f a float, d a double. The functions in SIGNATURES return an error
code, those in SIZES the bytes of workspace as an int64, those in COUNTS a number as an int.
"""

from __future__ import annotations

SIGNATURES = {
    "ragged_append": "ppppp" + "plll" * 2 + "piiiiip",
    "ragged_decode": "plllppppp" + "f" + "plllpp" + "iiiiiiip",
    "ragged_append_decode": "plll" * 3 + "ppppp" + "f" + "plllppp" + "iiiiiiip",
    "window_score": "pllpllpllllllfiilppip",
    "row_lse": "pllpllllllfpip",
    "column_sums": "pllpllplllllfpip",
    "select": "pllldipppp",
    "ragged_gather": "ppllllllppplppip",
    "ragged_relayout": "ppppppllppip",
    "add_rms_norm": "plplpfpiiip",
    "rope": "pll" * 2 + "pl" * 2 + "ppf" + "iiiiip",
    "silu_mul": "plplpiiip",
    "decode_weights": "pppppfpiiiiiip",
    "packed_decode": "plll" * 3 + "p" * 8 + "pp" + "plll" + "pf" + "iiiiii" + "iiiiip",
}
SIZES = {
    "decode_workspace_bytes": "ii",
    "window_score_workspace": "llllii",
    "select_workspace": "l",
    "packed_workspace": "llll",
}
COUNTS = {
    "decode_ctas": "iii",
}
