"""Loggers: stored results in W&B or Trackio.

A logger reads run folders and never writes into them. While a command computes, a process of its own follows the run
folders (`follow`), so that nothing that a logger does can block, slow or fail a run. `kvbench log` is the same code,
once over what is there.

    entries         runs of the store as entries of a logger: a method under a budget, with all datasets of a suite
    content         the content of an entry: history, summary, table of samples, images, predictions
    sweeps          the entry of a sweep: its progress, and a table and figures of all its entries
    overview        what a report of a sweep shows; wandb_report makes a W&B report of it
    ledger          notes of what was written, and locks, so that nothing is written twice
    sinks           the interface of W&B and Trackio, which are wandb_sink and trackio_sink
    write           an entry from the store into a sink
    follower        all entries of a command into all sinks
    follow, order   the process that does it, and what the command tells it
    live            the command's side: start the process, and never wait for one that does not move
    sync            the upload of W&B runs that are complete and still offline, see scripts/wandb_sync
"""
