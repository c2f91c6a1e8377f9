"""The command `kvbench prompts model=tiny benchmark=needle show=3`: print exactly what a model reads.

`show` takes the number of a prompt, the id of a sample as records hold it, or a list of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvbench.common.command import Parser, command, log_messages
from kvbench.prompts import show
from kvbench.prompts.choose import chosen_prompts, wanted_prompts

_READ = ("model", "benchmark", "seed")  # settings of `kvbench run` that count here
_EPILOG = """\
which prompt:
  show=N            the N-th prompt of the benchmark; 0 is the first, and the default
  show=ID           the sample with this id, as samples.jsonl and `kvbench view` have it
  "show=[ID,ID,3]"  several, by id or number

examples:
  kvbench prompts model=tiny benchmark=needle show=3
  kvbench prompts model=smollm2_135m benchmark=needle show=len00600-depth033-seed0
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print rendered prompts of a benchmark for a model. Returns the exit code."""
    parser = Parser(
        prog="kvbench prompts",
        description="Print a rendered prompt: special tokens, the end of the context, the stop ids.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="as for kvbench: model= benchmark= seed= and those below them; and show=: see below",
    )
    overrides = parser.parse_args(argv).overrides
    log_messages()
    print(_prompts(overrides))
    return 0


def _prompts(overrides: Sequence[str]) -> str:
    from omegaconf import OmegaConf

    from kvbench import models
    from kvbench.benchmarks.base import build
    from kvbench.config.compose import one_run
    from kvbench.prompts.seeds import check_seed

    shown = [item.partition("=")[2] for item in overrides if item.startswith("show=")] or ["0"]
    wanted = wanted_prompts(shown[-1])
    cfg = one_run([item for item in overrides if not item.startswith("show=")], "prompts", _READ)
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    spec = models.ModelSpec.from_node(node)
    benchmark = build(cfg.benchmark)
    check_seed(cfg, benchmark, None)
    tokenizer: Any = models.load_tokenizer(spec)
    chosen = chosen_prompts(spec, tokenizer, benchmark, wanted)
    texts = [f"{show(each.prompt, tokenizer)}\nsample: {each.name} of {each.part}" for each in chosen]
    return "\n\n\n".join(texts)


if __name__ == "__main__":
    raise SystemExit(main())
