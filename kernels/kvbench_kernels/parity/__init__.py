"""Comparison of every op with the reference in double precision, on inputs that are meant to break it.

Slots that are not live hold NaN, and so do outputs before the call. Segments are in another order than the lanes, some
belong to no lane, and queries are transposed views.

| file | content |
|---|---|
| table.py | the list of all cases |
| decoding.py, prompts.py, steps.py | the comparison of each op |
| rounded.py | the small ops in double precision, with the roundings to 16 bits in between |
| inputs.py | random inputs, bounds, and errors of results |
"""

from kvbench_kernels.parity.inputs import BOUND, arena, bound_of, error
from kvbench_kernels.parity.table import Case, cases

__all__ = ["BOUND", "Case", "arena", "bound_of", "cases", "error"]
