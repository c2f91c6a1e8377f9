"""Tables and figures from stored runs. Reads the store only, never a model: no torch, no transformers.

To read a store, for a table, a figure or an export of your own:

    from kvbench.store import iterate_runs, load_numbers
    from kvbench.report.difference import paired_difference
    from kvbench.report.paired import matrix
    from kvbench.report.runs import groups, names, setting

    runs = load_numbers("outputs/runs")         # all runs as arrays: [samples] scores, bytes, times; 200 bytes a sample
    for same in groups(runs):                   # runs that may share a table, sorted; others never mix
        scores = matrix(same, "recall")         # [runs, samples] on the same samples, NaN where one has no answer
        paired_difference(same[1], same[0], "recall")    # with its 95 % interval
    for run in iterate_runs("outputs/runs"):    # one run at a time, with all its records: answers, kept counts, texts
        run.samples

A `RunNumbers` has `path`, `manifest`, `status` and `columns` (`kvbench.store.columns.Columns`: ids, state, scores,
measured, context, bucket, length, depth). `numbers_of(run)` makes one of a run that was read with its records. Ten
thousand runs of 200 samples take about 0.6 GB as `RunNumbers`; with records, read one run at a time.

`present` prints and writes all forms of the tables. Statistics: `bootstrap` and `bca` (intervals), `holm` (tests of
several comparisons), `difference` (against the full cache), `best` (marks). The same store gives the same bytes.
"""
