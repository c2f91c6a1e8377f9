"""`kvbench layers model=smollm2_135m limit=20`: drop ratios of a model's layers, as prefixkv_offline reads them.

Heavy modules are imported after `--help` has been answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvbench.common.command import Parser, command, log_messages, resumable

if TYPE_CHECKING:
    from kvbench.run.jobs import Job

_READ = ("model", "benchmark", "limit", "seed", "threads", "progress", "paths")  # settings of `kvbench run` that count
_EPILOG = """\
settings: those of `kvbench run` that say what is read: model= benchmark= limit= seed= threads= progress=
paths.outputs= and those below them. The prompts of the benchmark calibrate; by default it is the needle.

examples:
  kvbench layers model=qwen3_8b limit=20
  kvbench layers model=local model.path=FOLDER benchmark=longbench limit=5     five prompts of each dataset

results: <paths.outputs>/layers/<model>-<hash>/ with <model>.json, the table for method=prefixkv_offline
method.profile=FILE: for 0, 10 … 90 % of the tokens that leave, the share that leaves each layer. <model>.about.json
next to it says how it was computed. The same command again prefills only the prompts that are missing.

exit status: 0; 2 for a mistake in the command, or a prompt that the model cannot take; 130 if it was interrupted.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Compute what is missing and write the table. Returns the exit code, see `kvbench.common.command`."""
    overrides = list(_parser().parse_args(argv).overrides)
    log_messages()
    jobs = _jobs(overrides)
    cfg = jobs[0].cfg
    import torch

    from kvbench.run.layers.compute import compute

    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    with resumable():
        path = compute(jobs, cfg["paths"]["outputs"], cfg["progress"])
    print(f"use it: python -m kvbench model={jobs[0].model.name} method=prefixkv_offline method.profile={path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="kvbench layers",
        description="Drop ratios of a model's layers by the offline calibration of PrefixKV (arXiv 2412.03409).",
        epilog=_EPILOG,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for kvbench")
    return parser


def _jobs(argv: Sequence[str]) -> list[Job]:
    """Return the benchmark's parts as jobs. Raises ValueError naming the override to change."""
    from kvbench.config.compose import one_run

    cfg = one_run(argv, "layers", _READ, ["method=prefixkv"])
    from kvbench.run.jobs import prepare  # imports torch, which a mistake need not wait for

    return prepare(cfg)
