"""The legends below tables: what the columns mean, and where the intervals come from."""

_INTERVAL = """\
95% interval: BCa bootstrap, 9,999 paired resamples of contexts{within}, wider for few samples, but within what a
difference of two scores can be. [1 sample], [1 context], [no spread]: no interval, as {where} has one of them only, or
no difference varies. n.s. or grey: the interval holds 0, or there is none and fewer than six differences have one sign.
Bold: significantly better than every other method under the same budget (paired sign-flip tests, all comparisons of a
column corrected after Holm, 5%)."""
_MEASURED = """
kept/head: measured tokens per KV head after compression (share of what was compressed). KV: what is held for them, keys
and values and what a store or a decode policy must know of each token (share of a full cache's keys and values).
"""
LEGEND = (
    """\
Means over the samples that got an answer; oom counts those that ran out of memory, failed those whose output was not
finite. Δ full: mean difference to the full cache over common samples, with its
"""
    + _INTERVAL.format(within="", where="the run")
    + _MEASURED
    + """\
Times are those of the batch that a row ran in: rows that share a prefill share its times.
"""
)
SUITE_LEGEND = (
    """\
Datasets: 100 × the mean score; * not all published samples, or some ran out of memory or failed. Averages are of these
numbers, in a mean by category first; (k/N): only k of N datasets (macro averages: categories). Δ full: difference of
the {lead} to the full cache, in points, over common datasets and samples, with its
"""
    + _INTERVAL.format(within=" within datasets", where="a dataset")
    + _MEASURED
    + """\
TTFT, TPOT: those of the batch that a row ran in.
"""
)
FRONT = """\
Rows are sorted by the bytes that stay resident. front: no row with fewer bytes scores as high, and none with equal
bytes scores higher (by the scores as they are, not a test).
"""
