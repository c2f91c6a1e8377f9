"""Attention and scores of a prompt on a CPU by our own C++, against the same in torch.

    python perf/cpu_scores.py [--tokens 1000,4000] [--turns 7] [--threads 2] [--out FILE.json]

A layer of SmolLM2-135M: 9 query heads, 3 KV heads, 64 dimensions, 576 outputs, random numbers. `attention` is that of
the prompt, `column_sums` H2O's score, `last 64 queries` the attention that window scores read, `output_norms` the size
of values in the output that CriticalKV reads. The contenders take turns; ratios are of medians. Both get the
log-sum-exp of the logits, which the prompt's attention has computed; torch has no use for it. Where the engine leaves
the attention to torch, both are torch's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import PropertyMock, patch

import torch
from conditions import report, where
from torch import Tensor

from kvbench.engine.prompt_attention import attend_with_lse
from kvbench.methods.base import LayerContext
from kvbench.methods.output_norms import output_norms
from kvbench_kernels.backends.cpu import CpuBackend
from kvbench_kernels.ops import reference
from kvbench_kernels.ops.host_sums import HostSums

HEADS, KV_HEADS, DIM, OUTPUTS, WINDOW = 9, 3, 64, 576, 64


def attention(ctx: LayerContext) -> Tensor:
    """Return the attention of the prompt, as a prefill computes it."""
    host = ctx.sums if isinstance(ctx.sums, HostSums) else None
    return attend_with_lse(ctx.q[None], ctx.k[None], ctx.v[None], ctx.scaling, True, host)[0][0]


WORK: dict[str, Callable[[LayerContext], Tensor]] = {
    "attention": attention,
    "column_sums": LayerContext.column_sums,
    f"last {WINDOW} queries": lambda ctx: ctx.window_attention(WINDOW),
    "output_norms": output_norms,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1000,4000")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weight_HDE = torch.randn(OUTPUTS, HEADS * DIM).t().view(HEADS, DIM, OUTPUTS)  # as a linear layer holds it
    model = SimpleNamespace(o_proj=lambda layer: weight_HDE)
    contenders = {"ours": CpuBackend().sums, "torch": None}
    result: dict[str, object] = {}
    with patch.object(LayerContext, "model", PropertyMock(return_value=model)):
        for tokens in map(int, args.tokens.split(",")):
            q_HTD, k_UTD, v_UTD = (torch.randn(heads, tokens, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
            lse_HT = reference.row_lse(q_HTD, k_UTD, DIM**-0.5)
            for what, work in WORK.items():
                seconds: dict[str, list[float]] = {name: [] for name in contenders}
                outs: dict[str, Tensor] = {}
                for _ in range(args.turns + 1):
                    for name, sums in contenders.items():
                        ctx = LayerContext(q_HTD, k_UTD, v_UTD, sums=sums, lse_HT=lse_HT)
                        begin = time.perf_counter()
                        outs[name] = work(ctx)
                        seconds[name].append(time.perf_counter() - begin)
                median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
                result[f"{what}, {tokens} tokens"] = {
                    "ms": {name: round(1000 * x, 3) for name, x in median.items()},
                    "of_torch": round(median["ours"] / median["torch"], 3),
                    "largest_difference": float((outs["ours"] - outs["torch"]).abs().max() / outs["torch"].abs().max()),
                }
    report({**result, **where(args.threads)}, args.out)


if __name__ == "__main__":
    main()
