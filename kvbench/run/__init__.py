"""What one command computes, in the order in which it happens: jobs, runner, batching, memory, record, rescore."""
