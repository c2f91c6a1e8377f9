"""`python -m kvbench.prompts model=tiny benchmark=needle show=3`: print what the model really reads."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench.prompts import facts, renderer, show


def main(argv: Sequence[str] | None = None, *, conf: Path | None = None) -> int:
    """Print the N-th rendered prompt of a benchmark for a model. `conf` replaces the configuration folder."""
    parser = argparse.ArgumentParser(
        prog="python -m kvbench.prompts",
        description="Print a rendered prompt: special tokens, the end of the context, the stop ids.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as for kvbench, e.g. model=tiny benchmark=needle; show=N for the N-th prompt (0 is the first)",
    )
    overrides = parser.parse_args(argv).overrides
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kvbench.config.messages import one_line

    try:
        print(_nth_prompt(overrides, conf))
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        # hydra wraps what a benchmark's constructor raises; the user needs the line inside
        reason = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        print(one_line(reason, overrides), file=sys.stderr)
        return 1
    return 0


def _nth_prompt(overrides: Sequence[str], conf: Path | None) -> str:
    import hydra
    from omegaconf import OmegaConf

    from kvbench import config, models, paths

    config.register()
    wanted = [item.partition("=")[2] for item in overrides if item.startswith("show=")] or ["0"]
    if not wanted[-1].isdigit():
        raise ValueError(f"show={wanted[-1]}: the number of a prompt, 0 for the first")
    number = int(wanted[-1])
    with hydra.initialize_config_dir(str(conf or paths.conf_dir()), version_base=None):
        cfg = hydra.compose("config", [item for item in overrides if not item.startswith("show=")])
    if conf is None:
        config.check(cfg)
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    spec = models.ModelSpec.from_node(node)
    tokenizer = models.load_tokenizer(spec)
    made = hydra.utils.instantiate(cfg.benchmark)
    parts = made.parts(facts(spec)) if hasattr(made, "parts") else [made]
    seen = 0
    for part in parts:
        samples = part.samples(tokenizer)
        if number < seen + len(samples):
            return show(renderer(spec, tokenizer, part)(samples[number - seen]), tokenizer)
        seen += len(samples)
    raise ValueError(f"show={number}: this benchmark has {seen} prompts, the first is 0")


if __name__ == "__main__":
    raise SystemExit(main())
