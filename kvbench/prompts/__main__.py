"""The command `kvbench prompts model=tiny benchmark=needle show=3`: print exactly what a model reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench.common.command import Parser, command
from kvbench.prompts import show
from kvbench.prompts.choose import nth_prompt


@command
def main(argv: Sequence[str] | None = None, *, conf: Path | None = None) -> int:
    """Print the N-th rendered prompt of a benchmark for a model. `conf` replaces the configuration folder."""
    parser = Parser(
        prog="kvbench prompts",
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
    from kvbench.config.messages import plain_mistakes

    with plain_mistakes(overrides):
        print(_nth_prompt(overrides, conf))
    return 0


def _nth_prompt(overrides: Sequence[str], conf: Path | None) -> str:
    import hydra
    from omegaconf import OmegaConf

    from kvbench import config, models
    from kvbench.common import paths

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
    tokenizer: Any = models.load_tokenizer(spec)
    benchmark = hydra.utils.instantiate(cfg.benchmark)
    return show(nth_prompt(spec, tokenizer, benchmark, number).prompt, tokenizer)


if __name__ == "__main__":
    raise SystemExit(main())
