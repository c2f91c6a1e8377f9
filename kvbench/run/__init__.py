"""The computation that one command asks for.

In the order in which it happens:

    jobs       a configuration is checked and becomes jobs with an identity
    plan       what the command asks for, written down before anything is computed
    runner     jobs become groups that share their prefills; outcomes
    samples    the samples that a group still misses, as prompts
    preflight  checks before weights are loaded: room in the budget, kernel, memory
    open_run   run folders, open for writing
    batching   samples on their way through the engine; what happens when it fails
    memory     how many of them fit together
    record     the line that is stored of a sample
    rescore    new scores for stored answers; `score` is the command
    finish     tables and figures after the runs

`versions` and `source_hash` tell which code computed a run. `layers/` is a command of its own, which computes a file
from prompts; `asset` is the folder of such a file.
"""
