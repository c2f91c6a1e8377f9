"""Cost of compressing a prompt per layer: scores of the window, selection, moving, against the prefill itself.

    python perf/gpu/scoring.py [--out FILE.jsonl]

It is compared with the causal attention of the same prompt (the faster of torch's own and cuDNN's), the matrix products
of such a layer, and the common formulation in eager torch (keys repeated, logits held, a loop over heads). The shape is
that of Llama-3.1-8B. Suffixes: H query heads, U KV heads, G = H / U, T tokens, W window, N = T - W, S1 = U + 1, D.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from bench import Bench
from timing import Timing, per_call, sets_needed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvbench_kernels.ops import reference

KERNEL, FLOOR = 7, 0.2  # max-pooling, and the part of the budget that every head gets


@dataclass(frozen=True)
class Shape:
    tokens: int
    budget: int = 1024  # tokens per head on average, the window included
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    window: int = 32
    hidden: int = 4096
    intermediate: int = 14336

    @property
    def total(self) -> int:
        return self.kv_heads * (self.budget - self.window)


class Prompt:
    """Sets of one layer's queries, keys and values, and the buffers that compaction fills."""

    def __init__(self, shape: Shape, bench: Bench) -> None:
        self.shape, self.bench = shape, bench
        nbytes = 4 * shape.kv_heads * shape.tokens * shape.dim
        self.sets = sets_needed(nbytes, bench.device)
        self.k_UTD = [self.normal(shape.kv_heads, shape.tokens, shape.dim) for _ in range(self.sets)]
        self.v_UTD = [self.normal(shape.kv_heads, shape.tokens, shape.dim) for _ in range(self.sets)]
        self.q_HTD = self.normal(shape.heads, shape.tokens, shape.dim)
        self.q_HWD = self.q_HTD[:, -shape.window :]
        self.scaling = 1 / math.sqrt(shape.dim)
        slots = shape.kv_heads * (shape.budget + 8)  # known without a look at how many each head keeps
        self.k_RD, self.v_RD = self.normal(slots, shape.dim), self.normal(slots, shape.dim)
        self.head_U = torch.arange(shape.kv_heads, dtype=torch.int32, device=bench.device)
        self.always_UW = torch.ones(shape.kv_heads, shape.window, dtype=torch.bool, device=bench.device)
        self.first = torch.zeros(1, dtype=torch.int32, device=bench.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=self.bench.device, generator=self.bench.generator)

    def score(self, i: int, lse_HW: Tensor | None = None) -> Tensor:
        return torch.ops.kvb.window_score(self.q_HWD, self.k_UTD[i], lse_HW, self.scaling, "mean", "max", KERNEL)

    def select(self, score_UN: Tensor) -> tuple[Tensor, Tensor]:
        keep_UN, count_U = torch.ops.kvb.select(score_UN, self.shape.total, FLOOR, "layer")
        return keep_UN, count_U

    def compact(self, i: int, keep_UN: Tensor, count_U: Tensor) -> Tensor:
        """Move kept tokens and the window to the arena; returns where each head begins: [S1]."""
        shape = self.shape
        end_U = (count_U + shape.window + 8).cumsum(0, dtype=torch.int32)
        start_S1 = torch.cat([self.first, end_U])
        keep_UT = torch.cat([keep_UN, self.always_UW], 1)
        torch.ops.kvb.ragged_gather(self.k_UTD[i], self.v_UTD[i], keep_UT, self.head_U, start_S1, self.k_RD, self.v_RD)
        return start_S1

    def compress(self, i: int) -> Tensor:
        """Run the whole compression without waiting for the device."""
        return self.compact(i, *self.select(self.score(i)))

    def lse(self, i: int) -> Tensor:
        """Return the window's log-sum-exp, which the prefill's attention knows: [H, W], float32."""
        logits_HWT = _window_logits(self.q_HWD.float(), self.k_UTD[i].float(), self.scaling)
        return logits_HWT.logsumexp(-1).contiguous()


def _window_logits(q_HWD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    """Return logits [H, W, T], causal inside the window; keys are repeated for the heads of a group."""
    window, tokens = q_HWD.shape[1], k_UTD.shape[1]
    k_HTD = k_UTD.repeat_interleave(len(q_HWD) // len(k_UTD), 0)
    hidden_WT = torch.ones(window, tokens, dtype=torch.bool, device=q_HWD.device).triu(tokens - window + 1)
    return (q_HWD @ k_HTD.mT * scaling).masked_fill(hidden_WT, -torch.inf)


def eager_scores(q_HWD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    """Score in the common formulation, in double precision if the inputs are: [U, N]."""
    past, wide = k_UTD.shape[1] - q_HWD.shape[1], torch.promote_types(q_HWD.dtype, torch.float32)
    weight_HWN = _window_logits(q_HWD, k_UTD, scaling).softmax(-1, dtype=wide).to(q_HWD.dtype)[..., :past]
    score_UN = weight_HWN.mean(1).unflatten(0, (len(k_UTD), -1)).mean(1)
    return F.max_pool1d(score_UN, KERNEL, 1, KERNEL // 2)


def eager(prompt: Prompt, i: int) -> tuple[Tensor, Tensor]:
    """Score, select over the layer and loop over heads, which waits for the device."""
    shape, k_UTD, v_UTD = prompt.shape, prompt.k_UTD[i], prompt.v_UTD[i]
    score_UN = eager_scores(prompt.q_HWD, k_UTD, prompt.scaling)
    past = score_UN.shape[1]
    chosen = score_UN.flatten().topk(shape.total).indices
    keys, values = [], []
    for head in range(shape.kv_heads):
        ours = (chosen[chosen // past == head] % past).sort().values
        keys += [k_UTD[head, ours], k_UTD[head, past:]]
        values += [v_UTD[head, ours], v_UTD[head, past:]]
    return torch.cat(keys), torch.cat(values)


def waited(work: Callable[[int], object], sets: int, device: torch.device) -> Timing:
    """Time work that waits for the device itself: by the clock, the median of several."""

    def done() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    work(0)
    took = []
    for turn in range(2 if device.type == "cpu" else 15):
        begun = done()
        work(turn % sets)
        took.append(done() - begun)
    took.sort()
    return Timing(statistics.median(took), took[len(took) // 10], took[-1 - len(took) // 10], len(took), 1)


def attention(prompt: Prompt) -> dict[str, Timing | str]:
    """Time the libraries' causal attention of the whole prompt; a library that cannot gets its error's first line."""
    q, k, v = (x[None] for x in (prompt.q_HTD, prompt.k_UTD[0], prompt.v_UTD[0]))
    libraries = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    matches: dict[str, Timing | str] = {}
    for name, library in libraries.items():

        def work(_: int) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=prompt.scaling, enable_gqa=True)

        try:
            with sdpa_kernel([library]):
                matches[name] = per_call(work, 1, prompt.bench.device, rounds=1)
        except Exception as problem:  # not on this device
            matches[name] = prompt.bench.survive(problem, f"attention by {name}")
    return matches


def products(prompt: Prompt) -> Timing:
    """Multiply the matrices of one layer over the whole prompt."""
    shape, (wide, deep) = prompt.shape, (prompt.shape.hidden, prompt.shape.intermediate)
    both = shape.heads * shape.dim + 2 * shape.kv_heads * shape.dim
    weights = [prompt.normal(*sizes) for sizes in ((wide, both), (wide, wide), (wide, 2 * deep), (deep, wide))]
    inputs = {size: prompt.normal(shape.tokens, size) for size in (wide, deep)}
    return per_call(lambda _: [inputs[len(w)] @ w for w in weights], 1, prompt.bench.device, rounds=1)


def check(prompt: Prompt) -> dict[str, object]:
    """Compare scores with double precision (KV head 0), selection and moving with torch, and three runs."""
    shape, (k_UTD, v_UTD) = prompt.shape, (prompt.k_UTD[0], prompt.v_UTD[0])
    scores = [prompt.score(0) for _ in range(3)]
    group = shape.heads // shape.kv_heads
    expected_1N = eager_scores(prompt.q_HWD[:group].double(), k_UTD[:1].double(), prompt.scaling)
    known = prompt.score(0, prompt.lse(0))
    keep_UN, count_U = prompt.select(scores[0])
    expected = reference.select(scores[0].cpu(), shape.total, FLOOR, "layer")
    start_S1 = prompt.compact(0, keep_UN, count_U)
    keep_UT = torch.cat([keep_UN, prompt.always_UW], 1)
    moved = all(
        torch.equal(target[start : start + int(keep_UT[head].sum())], source[head, keep_UT[head]])
        for head, start in enumerate(start_S1[:-1].tolist())
        for target, source in ((prompt.k_RD, k_UTD), (prompt.v_RD, v_UTD))
    )
    return {
        "error": float((scores[0][:1].double() - expected_1N).norm() / expected_1N.norm()),
        "error_lse": float((known[:1].double() - expected_1N).norm() / expected_1N.norm()),
        "bitwise": all(torch.equal(scores[0], other) for other in scores[1:]),
        "chosen": torch.equal(keep_UN.cpu(), expected[0]) and torch.equal(count_U.cpu(), expected[1]),
        "moved": moved,
    }


def parts(prompt: Prompt) -> dict[str, Callable[[int], object]]:
    """Return what is timed, by name: the whole, and its parts."""
    lse_HW, score_UN = prompt.lse(0), prompt.score(0)
    keep_UN, count_U = prompt.select(score_UN)
    return {
        "compress": prompt.compress,
        "score": prompt.score,
        "score with lse": partial(prompt.score, lse_HW=lse_HW),
        "select": lambda _: prompt.select(score_UN),
        "gather": partial(prompt.compact, keep_UN=keep_UN, count_U=count_U),
    }


def main() -> None:
    bench = Bench("scoring", __doc__)
    toy = Shape(96, budget=40, heads=4, kv_heads=2, dim=64, window=16, hidden=32, intermediate=64)
    with bench.kernels():
        for shape in [toy] if bench.toy else [Shape(32768), Shape(8192), Shape(131072)]:
            about = {"tokens": shape.tokens, "budget": shape.budget, "window": shape.window}
            if bench.left() < 6 + shape.tokens / 1e4:
                bench.record(what="prompt", **about, skipped="no time left")
                continue
            prompt = Prompt(shape, bench)
            bench.record(what="prompt", **about, part="checked", **check(prompt))
            for name, work in parts(prompt).items():
                timing = per_call(work, prompt.sets, bench.device)
                bench.record(what="prompt", **about, part=name, **timing.micro())
            for name, timing in attention(prompt).items():
                result = {"missing": timing} if isinstance(timing, str) else timing.micro()
                bench.record(what="prompt", **about, part="attention", by=name, **result)
            bench.record(what="prompt", **about, part="products", **products(prompt).micro())
            bench.clean()
            try:
                result = waited(partial(eager, prompt), prompt.sets, bench.device).micro()
            except Exception as problem:  # repeated keys and held logits take much memory
                result = {"missing": bench.survive(problem, "eager")}
            bench.record(what="prompt", **about, part="eager", **result)
            del prompt
            bench.clean()


if __name__ == "__main__":
    main()
