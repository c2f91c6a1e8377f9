"""The operations torch.ops.kvb.*: what they compute, what they accept, and how the compiled kernels are called.

| file | content |
|---|---|
| reference.py, apportion.py | every op in plain torch: the specification, and what runs on a CPU |
| registration.py | schemas, and the choice between reference and compiled kernel |
| checks.py, require.py | checks of an op's arguments |
| fakes.py | shapes of the results, for tracing |
| host_*.py | what only CPUs have, by our own C++ |
| launch*.py, library.py, pointers.py | calls of the compiled C functions, whose arguments are in ../calls.py |
| prompt.py | the ops for prompts, as methods and cache call them |
"""

from kvbench_kernels.ops.checks import MOST_TOKENS
from kvbench_kernels.ops.registration import SCHEMAS, STEP_OPS, StepOps, emulated, prepare, step_ops, workspace
from kvbench_kernels.ops.require import DTYPES, HEAD_DIMS, rows, takes_weight

__all__ = [
    "DTYPES", "HEAD_DIMS", "MOST_TOKENS", "SCHEMAS", "STEP_OPS", "StepOps", "emulated", "prepare", "rows", "step_ops",
    "takes_weight", "workspace",
]  # fmt: skip
