"""An estimate of the memory that requests need, made before weights are loaded, and a limit on batches by it.

Estimates are upper bounds by arithmetic. They decide how many prompts share a batch. A wrong one costs a retry with
half the rows, never a result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from kvbench.engine.row_bytes import local_row_bytes, row_bytes
from kvbench.engine.variant import Request, span_tokens
from kvbench.methods.allowance import fits_late
from kvbench.methods.fitting import CacheShape
from kvbench.models import Shape

FRACTION = 0.9  # of the free memory: the rest is for what the estimate does not know
GIB = 2**30
_PROC, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_VERSION_2 = ("memory.max", "memory.current")


def cache_bytes(shape: Shape, request: Request, span: int, masked: bool = False) -> int:
    """Return the bytes that the rows of a request keep of `span` tokens, with the room for their answers.

    These are the bytes of the compressed layers; see `local_bytes` for the others.

    Args:
        masked: True for engine.cache=masked.
    """
    of_layers, new = cache_shape(shape), request.max_new_tokens
    return sum(row_bytes(v, of_layers, span, len(prompt.ids) - span, new, masked) for prompt, v in request.rows)


def local_bytes(shape: Shape, requests: Sequence[Request]) -> int:
    """Return the bytes of the layers that keep a window, for all rows of a batch."""
    longest = max(len(prompt.ids) + request.max_new_tokens for request in requests for prompt in request.prompts)
    of_row = local_row_bytes(cache_shape(shape, local=True), shape.window, longest)
    return of_row * sum(len(request.rows) for request in requests)


def cache_shape(shape: Shape, local: bool = False) -> CacheShape:
    """Return the sizes of the compressed layers of a model, or of its local ones."""
    dtype = {8: torch.float64, 4: torch.float32}.get(shape.itemsize, torch.bfloat16)  # 16 bits are 16 bits here
    layers = shape.local_layers if local else shape.compressed_layers
    return CacheShape(layers, shape.kv_heads, shape.heads, shape.head_dim, dtype)


def moved_bytes(shape: Shape, kept: int, local: int) -> int:
    """Return the bytes that joining prompts need, which move one layer after the other into new buffers.

    Args:
        kept: bytes of all compressed layers.
        local: bytes of all local layers.
    """
    return max(kept // shape.compressed_layers, local // max(1, shape.local_layers))


def prefill_bytes(shape: Shape, request: Request, span: int) -> int:
    """Return the bytes that the forward passes of a context and of its questions need in addition to the cache.

    For the context these are activations, scores and the K and V of all layers where a method waits for the end
    of the prefill. Questions follow after that; those of equal length are one pass.
    """
    queries = min(span, max((v.method.queries for v in request.variants), default=0))
    scores = 4 * span * (2 * shape.kv_heads * shape.head_dim + 2 * shape.heads * max(1, queries))
    waits = any(v.method.waits or fits_late(v.method, v.budget) for v in request.variants)
    waiting = span * shape.token_bytes if waits else 0
    lengths = Counter(len(prompt.ids) - span for prompt, _ in request.rows)
    question = max((length * rows for length, rows in lengths.items()), default=0)
    fed = Counter(variant.method.feed for variant in request.variants if variant.method.feed is not None)
    whole = span * max(fed.values(), default=0)  # variants of one feed take the context in together
    return max(_activations(shape, span) + scores + waiting, _activations(shape, max(question, whole)))


def _activations(shape: Shape, tokens: int) -> int:
    """Return the bytes of the activations of a forward pass over this many tokens."""
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return tokens * shape.itemsize * (3 * shape.hidden + max(2 * qkv, 3 * shape.intermediate))


def decode_bytes(shape: Shape, rows: int) -> int:
    """Return the bytes that a decode step needs in addition to the cache: logits twice, and one layer."""
    return rows * (shape.vocab * (shape.itemsize + 4) + shape.itemsize * (4 * shape.hidden + 3 * shape.intermediate))


@dataclass(frozen=True)
class Limits:
    """The limits on what may decode together.

    Args:
        max_rows: rows (prompt x variant) of a batch.
        max_prompts: contexts of a batch; a kill loses at most the questions on this many.
        free: bytes that a batch may take in addition to the weights.
        shape: sizes of the model.
        question: aware or agnostic.
        masked: True if the cache keeps all tokens (engine.cache=masked).
    """

    max_rows: int
    max_prompts: int
    free: int
    shape: Shape
    question: str
    masked: bool = False

    def __call__(self, in_flight: Sequence[Request], joining: Request) -> bool:
        """Return True if a request may join those in flight."""
        together = [*in_flight, joining]
        return (
            len(together) <= self.max_prompts
            and sum(len(r.rows) for r in together) <= self.max_rows
            and self.total(together) <= self.free
        )

    def total(self, requests: Sequence[Request]) -> int:
        """Return the peak in bytes, without the weights, when requests decode together.

        Their prompts are prefilled one after the other.
        """
        spans = [span_tokens(request.prompts[0], self.question) for request in requests]
        kept = sum(cache_bytes(self.shape, r, n, self.masked) for r, n in zip(requests, spans, strict=True))
        peak = max(prefill_bytes(self.shape, r, n) for r, n in zip(requests, spans, strict=True))
        rows, local = sum(len(r.rows) for r in requests), local_bytes(self.shape, requests)
        return kept + local + moved_bytes(self.shape, kept, local) + max(peak, decode_bytes(self.shape, rows))

    def part(self, request: Request) -> Request:
        """Return the request of as many of the first rows as fit by themselves, at least one."""
        count = len(request.rows)
        while count > 1 and not self([], request.part(count)):
            count = (count + 1) // 2
        return request.part(count)


def free_bytes(device: str, *, all_gpus: bool = False) -> int:
    """Return the bytes that this process can still take on a device, or on all GPUs that layers are spread over.

    On a GPU these are the driver's free bytes and those that torch's allocator holds unused. On the host it is what
    the system has available or what the control group leaves (a Slurm job has one), whichever is less.
    """
    if device.startswith("cuda"):
        devices = range(torch.cuda.device_count()) if all_gpus else [torch.device(device)]
        return sum(
            torch.cuda.mem_get_info(d)[0] + torch.cuda.memory_reserved(d) - torch.cuda.memory_allocated(d)
            for d in devices
        )
    return min([int(psutil.virtual_memory().available), *_group_limits()])


def _group_limits() -> list[int]:
    """Return the bytes that the control groups of this process, and those above them, leave below their limits."""
    try:
        lines = _PROC.read_text().splitlines()
    except OSError:
        return []
    bytes_left = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else _VERSION_2
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            left = _left(folder, limit, used) if folder.is_relative_to(root) else None
            if left is not None:
                bytes_left.append(left)
    return bytes_left


def _left(folder: Path, limit: str, used: str) -> int | None:
    """Return the bytes that a control group leaves below its limit; None without a limit. The page cache is free."""
    try:
        most, taken = (folder / limit).read_text().strip(), int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return None if most == "max" else max(0, int(most) - taken + cached)
