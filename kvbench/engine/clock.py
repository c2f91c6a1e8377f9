"""The clock of the engine's timings, and the times of variants that share a prefill."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from kvbench.methods.context import LayerContext


def now(device: torch.device) -> float:
    """Return the wall clock in seconds, after everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class VariantTimes:
    """The seconds that the compression of each variant would have taken without the others.

    Args:
        seconds: per variant, the seconds so far.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds = list(seconds)

    @contextmanager
    def __call__(
        self, variants: Sequence[int], ctx: LayerContext, shares: Mapping[int, float] | None = None
    ) -> Iterator[None]:
        """Add the seconds of a block, and of the results that it reuses, to the times of variants.

        Args:
            shares: the share of each variant, where it is not all of the time.
        """
        ctx.watch.user = variants[0] if len(variants) == 1 else None
        begin, reused_s = now(ctx.k.device), ctx.reused_s
        yield
        seconds = now(ctx.k.device) - begin + ctx.reused_s - reused_s
        for index in variants:
            self.seconds[index] += seconds * (1.0 if shares is None else shares[index])
