"""Test vector TV-A: a deterministic prompt without random numbers, and the figures that belong to it.

Shapes: H 4 query heads, U 2 KV heads (g 2), T 16 tokens, D 4 channels.
Settings: window 3, kernel 3, budget 7, so 4 tokens are selected.
"""

from __future__ import annotations

import math

import numpy as np

NUM_HEADS, NUM_KV_HEADS, TOKENS, DIM = 4, 2, 16, 4
WINDOW, KERNEL, BUDGET = 3, 3, 7
WINDOW_TOKENS = [13, 14, 15]


def tensors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q [4, 16, 4], k and v [2, 16, 4] in float64."""
    q_HTD = np.zeros((NUM_HEADS, TOKENS, DIM))
    k_UTD = np.zeros((NUM_KV_HEADS, TOKENS, DIM))
    v_UTD = np.zeros((NUM_KV_HEADS, TOKENS, DIM))
    for i in range(TOKENS):
        for c in range(DIM):
            for h in range(NUM_HEADS):
                q_HTD[h, i, c] = 2 * math.cos(0.5 * (h + 1) + 0.4 * i + 1.1 * c)
            for u in range(NUM_KV_HEADS):
                k_UTD[u, i, c] = 2 * math.sin(0.7 * (u + 1) + 1.3 * i + 0.9 * c + 0.11 * i * i)
                v_UTD[u, i, c] = math.sin(0.3 * (u + 1) * (i + 1) + 0.2 * c)
    return q_HTD, k_UTD, v_UTD


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


# Last attention row of query heads 0 and 3.
ROW_0_15 = _numbers(
    ".012343 .332843 .001342 .000050 .151749 .001882"
    " .000323 .135910 .000048 .203975 .000099 .017793 .013742"
    " .000040 .089394 .038468"
)
ROW_3_15 = _numbers(
    ".001156 .065359 .097634 .000684 .007741 .112878"
    " .000422 .169652 .000704 .134696 .000487 .205628 .001222"
    " .005284 .194167 .002286"
)

# Sum over the three window queries, keys 0 to 12, one line per query head.
WINDOW_SUMS = [
    _numbers(".189459 .829924 .002114 .000611 .929512 .002920 .006797 .240396 .000577 .392382 .001656 .027165 .205439"),
    _numbers(".047285 .903763 .012310 .000221 .469914 .016526 .001290 .467120 .000215 .628089 .000405 .102839 .052385"),
    _numbers(".212452 .673952 .014217 .001399 .800055 .017972 .010165 .304769 .001346 .411246 .002990 .080242 .228384"),
    _numbers(".049085 .582410 .120666 .001630 .297590 .141658 .003673 .503219 .001633 .543768 .001913 .318123 .053076"),
]

# Average-pooled window sums of query head 0.
POOLED_SUM_0 = _numbers(
    ".339794 .340499 .277550 .310746 .311015 .313077 .083371 .082590 .211118 .131539 .140401 .078087 .077535"
)
# Mean over the window, average pool, mean over the two query heads of KV head 0.
POOLED_MEAN_KV_0 = _numbers(
    ".109468 .110270 .097164 .078593 .078872 .079276 .040836 .039800 .096043 .056851 .064030 .021661 .021546"
)
# Column sums of query head 0, keys 0 to 12.
COLUMN_SUMS_0 = _numbers(
    "2.095840 2.308269 3.181731 2.703052 1.470035 .515939 1.084783 .257859 .961385 .421824 .320810 .029899 .477529"
)
# PrefixKV: query heads 0 and 1 as one layer, mean over heads, summed over queries.
PREFIX_SCORES_0 = _numbers(
    "2.187829 2.299652 2.897221 3.010829 1.592772 .328917"
    " 1.163821 .396058 .719312 .586256 .192091 .069133 .321765"
    " .000228 .210252 .023862"
)
