"""`kvbench heads model=smollm2_135m probe=retrieval`: scores of a model's heads, as headkv reads them.

Heavy modules are imported after `--help` has been answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvbench.common.command import Parser, command, log_messages, resumable
from kvbench.common.paths import conf_dir, shown_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_READ = ("model", "seed", "threads", "progress", "paths")  # settings of `kvbench run` that count here
_EPILOG = """\
settings of the probe (heads.NAME=VALUE; probe=NAME is short for heads.probe=NAME) and their defaults:

{settings}
The other settings are those of `kvbench run`: model= seed= threads= progress= paths.outputs= and those below them.

examples:
  kvbench heads model=qwen3_8b                             the retrieval probe (HeadKV-R)
  kvbench heads model=qwen3_8b probe=reasoning             the retrieval-reasoning probe (HeadKV-R2)
  kvbench heads model=local model.path=FOLDER heads.lengths=[1000,2000,4000] heads.num_seeds=3

results: <paths.outputs>/heads/<model>-<probe>-<hash>/ with <model>_<probe>.json, the table in HeadKV's format, for
method=headkv method.table=FILE. NAME.about.json next to it says how it was computed. The same command again answers
only the prompts that are missing. A prompt counts if the model's answer is good enough (heads.bar).

exit status: 0; 2 for a mistake in the command, or a model that answers no prompt; 130 if it was interrupted.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Compute what is missing and write the table. Returns the exit code, see `kvbench.common.command`."""
    overrides = list(_parser().parse_args(argv).overrides)
    log_messages()
    cfg, settings = _composed(overrides)
    from kvbench.benchmarks.head_probes import HeadProbe
    from kvbench.models import ModelSpec

    probe = HeadProbe(**settings, seed=cfg["seed"])
    spec = ModelSpec.from_node(cfg["model"])
    spec.check_answers()
    import torch

    from kvbench.run.heads.compute import compute

    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    with resumable():
        path = compute(spec, probe, cfg["paths"]["outputs"], cfg["progress"])
    print(f"use it: python -m kvbench model={spec.name} method=headkv method.table={path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="kvbench heads",
        description="Scores of a model's attention heads by a probe of HeadKV (arXiv 2410.19258).",
        epilog=_EPILOG.format(settings=shown_settings("heads")),
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for kvbench")
    return parser


def _composed(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the composed configuration and the settings of the probe. Raises ValueError for a mistake in them."""
    from omegaconf import OmegaConf

    from kvbench.config.compose import one_run, parse

    ours: list[Override] = []
    others: list[Override] = []
    for override in parse(argv):
        name = override.key_or_group
        (ours if name == "probe" or name.partition(".")[0] == "heads" else others).append(override)
    cfg = one_run([str(override.input_line) for override in others], "heads", _READ)
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(_READ)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, _settings(ours)


def _settings(overrides: Sequence[Override]) -> dict[str, Any]:
    """Return the shipped settings of the probe with these overrides. Raises ValueError naming one that cannot be."""
    from omegaconf import OmegaConf

    from kvbench.common.suggest import did_you_mean
    from kvbench.config.annotations import check_value, settings_of

    shipped = OmegaConf.to_container(OmegaConf.load(conf_dir() / "heads.yaml"))
    assert isinstance(shipped, dict)
    settings = {str(key): value for key, value in shipped.items()}
    kinds = settings_of("kvbench.benchmarks.head_probes.HeadProbe")
    for override in overrides:
        name, text = override.key_or_group.rpartition(".")[2], override.input_line
        if name not in settings:
            raise ValueError(f"{text}: no such setting.{did_you_mean(name, settings)}")
        if override.is_delete() or override.is_add() or override.is_sweep_override():
            raise ValueError(f"{text}: give one value, as in heads.{name}=VALUE, and a list as [1,2]")
        settings[name] = override.value()
        check_value(f"heads.{name}", settings[name], kinds[name])
    return settings
