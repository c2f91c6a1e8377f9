"""`kvbench run --help`: what can be chosen and what can be set, read from conf/ as it is."""

from __future__ import annotations

import textwrap

from kvbench.common.paths import conf_dir
from kvbench.config import GROUPS, options

_HEAD = """\
usage: kvbench [run] key=value …             one run
       kvbench [run] -m key=value,value …    a sweep: every combination of the listed values

Compute what is not recorded yet, and print the tables. The same command again resumes it.

examples:
  kvbench method=ada_pyramidkv budget=128 benchmark=needle model=smollm2_135m
  kvbench method=snapkv method.window=8 method.pooling=avg       every dial of a method is a setting
  kvbench -m method=snapkv,ada_snapkv+kivi budget=0.1B,0.2B      eviction and quantisation at equal bytes
  kvbench -m launcher=fused_slurm launcher.partition=gpu method=snapkv,h2o       on a cluster: docs/slurm.md
"""
_FLAGS = """\
flags:
  -m, --multirun       a sweep
  --cfg job            print the composed configuration and stop; with --resolve, references are followed
  --package NODE       with --cfg: one node alone, as in --cfg job --package benchmark benchmark=ruler
  --info KIND          how Hydra composed it: all, config, defaults, defaults-tree, plugins, searchpath
  --hydra-help         help of Hydra, with its completion of commands in a shell

The dials of a method: kvbench methods NAME. A prompt as the model reads it: kvbench prompts. Results: kvbench report.
What is missing: kvbench status. Time and memory: kvbench profile.

exit status: 0; 1 if a run failed elsewhere; 2 for a mistake in the command; 130 if it was interrupted."""
_LAUNCHERS = "fused (the default), fused_slurm, basic"


def run_help() -> str:
    """Return the help of `kvbench run`."""
    choices = {group: ", ".join(options(group)) for group in (*GROUPS, "experiment", "logger")}
    choices["launcher"] = f"{_LAUNCHERS}; settings: launcher.NAME=VALUE, see conf/hydra/launcher"
    lines = [_entry(group, names) for group, names in choices.items()]
    head = "choices (group=option, each a file in conf/GROUP/; methods combine with a +, as in snapkv+kivi):"
    settings = "settings (key=value) and their defaults:"
    return "\n".join([_HEAD, head, *lines, "", settings, "", textwrap.indent(settings_text(), "  "), "", _FLAGS])


def settings_text() -> str:
    """Return the settings of conf/config.yaml with their comments, without the choice of groups and Hydra's own."""
    blocks = (conf_dir() / "config.yaml").read_text(encoding="utf-8").strip().split("\n\n")
    return "\n\n".join(block for block in blocks if not block.startswith(("#", "hydra:")))


def _entry(group: str, names: str) -> str:
    return textwrap.fill(f"  {group:<11}{names}", 110, subsequent_indent=" " * 13, break_on_hyphens=False)
