"""Backends: the ways to compute ragged attention.

`choose_backend` says which one serves a model on this machine, and `make_backend` creates it.
"""

from kvbench_kernels.backends.base import NOT_OF_THE_HEAD, Backend, Buffers, Lanes
from kvbench_kernels.backends.choice import (
    NAMES,
    AttentionSpec,
    Choice,
    choose_backend,
    make_backend,
    preferred,
    unmet_requirement,
)
from kvbench_kernels.backends.packed import PackedAttention, PackedHalf, layout_of
from kvbench_kernels.backends.slab import Slab

__all__ = [
    "NAMES",
    "NOT_OF_THE_HEAD",
    "AttentionSpec",
    "Backend",
    "Buffers",
    "Choice",
    "Lanes",
    "PackedAttention",
    "PackedHalf",
    "Slab",
    "choose_backend",
    "layout_of",
    "make_backend",
    "preferred",
    "unmet_requirement",
]
