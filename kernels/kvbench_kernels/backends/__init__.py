"""Who computes ragged attention: `choose` says which backend serves a model here, `make` makes it."""

from kvbench_kernels.backends.base import Backend, Buffers, Lanes
from kvbench_kernels.backends.choice import NAMES, Choice, Use, choose, make, missing, preferred

__all__ = ["NAMES", "Backend", "Buffers", "Choice", "Lanes", "Use", "choose", "make", "missing", "preferred"]
