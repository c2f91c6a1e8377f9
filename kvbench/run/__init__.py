"""The computation that one command asks for.

In the order in which it happens:

    jobs       a configuration is checked and becomes jobs with an identity
    plan       what the command asks for, written down before anything is computed
    runner     jobs become groups that share their prefills; outcomes, and the tables at the end
    logged     a logger follows the runs while they are computed
    samples    the samples that a group still misses, as prompts
    preflight  checks before weights are loaded: room in the budget, kernel, memory
    refused    why runs cannot be computed, kept in the outputs
    open_run   run folders, open for writing
    batching   samples on their way through the engine; what happens when it fails
    memory     how many of them fit together
    record     the line that is stored of a sample

`versions` and `source_hash` tell which code computed a run, `hardware` on which machine. Commands of their own:

    score      new scores for stored answers, which `rescore` computes
    log        stored results into W&B or Trackio
    heads      scores of a model's heads, for method=headkv
    layers     drop ratios of a model's layers, for method=prefixkv_offline

`asset` is the folder of a file that `heads` or `layers` writes.
"""
