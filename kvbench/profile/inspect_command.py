"""`kvbench inspect method=fastgen prompt="…" layers=[0,5]`: what each head keeps of a prompt, and where it looks.

Heavy modules are imported after `--help` has been answered.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.common.command import Parser, command, log_messages
from kvbench.report.formats import FORMATS

_EPILOG = """\
settings of this command:
  prompt=TEXT     the text to prefill, in the model's chat template (model.chat_template=never: the text alone)
  show=N, show=ID without prompt=: the N-th prompt of the benchmark (0 is the first), or the sample with this id
  layers=[0,5]    the layers whose attention is drawn; layers=all, layers=[] for none. Default: first, middle and last
The other settings are those of `kvbench run`: model= method= budget= benchmark= seed= threads= paths.outputs= and those
below them (method.recovery=0.8, model.dtype=bfloat16).

examples:
  kvbench inspect model=tiny method=fastgen prompt="The code of the safe is 7305, not 1234."
  kvbench inspect model=smollm2_135m method=ada_snapkv budget=0.2 benchmark=needle show=2 layers=[0,15,29]

results: <paths.outputs>/inspect/<model>-<method>-<hash>/ with layers.md, layers.csv and layers.json (MiB before and
after, saved share, tokens per head, heads per policy), heads.csv (one line per head: its policy, what it kept),
kept_heads and kept_text (kept tokens by head, and over the text) and attention_layerNN, each as .png and .pdf. The same
command again writes the same files.

exit status: 0; 2 for a mistake in the command.
"""
_OWN = ("prompt", "show", "layers")
_READ = ("model", "method", "budget", "benchmark", "seed", "threads", "paths")  # settings of `kvbench run` that count


@dataclass(frozen=True)
class Asked:
    """The settings of this command. `layers` is None for the default, and "all" for all."""

    text: str | None
    show: int | str
    layers: list[int] | str | None
    others: list[str]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Prefill one prompt, print the tables, write the files. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    log_messages()
    asked = settings(arguments.overrides)
    from kvbench.config.compose import one_run

    cfg = one_run(asked.others, "inspect", _READ)
    from kvbench.profile.inspect_prompt import inspect_prompt
    from kvbench.profile.inspect_text import console

    seen = inspect_prompt(cfg, asked.text, asked.show, asked.layers)
    print(console(seen, arguments.format))
    return 0


def settings(overrides: Sequence[str]) -> Asked:
    """Return the settings of this command, and the other overrides.

    Raises:
        ValueError: one line naming the override to change.
    """
    own: dict[str, str] = {}
    others = []
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals and name in _OWN:
            own[name] = value
        else:
            others.append(override)
    if "prompt" in own and not own["prompt"].strip():
        raise ValueError('prompt=: give a text, as in prompt="The code is 7305."')
    if "prompt" in own and "show" in own:
        raise ValueError(f"show={own['show']}: chooses a prompt of a benchmark; leave out show or prompt")
    if "prompt" in own and any(re.match(r"\+*benchmark[=./]", override) for override in others):
        raise ValueError("prompt=: takes the place of a benchmark's prompt; leave out prompt or benchmark")
    return Asked(own.get("prompt"), _show(own.get("show", "0")), _layers(own.get("layers")), others)


def _show(text: str) -> int | str:
    from kvbench.prompts.choose import wanted_prompts

    wanted = wanted_prompts(text)
    if len(wanted) != 1:
        raise ValueError(f"show={text}: this command looks at one prompt, as in show={wanted[0]}")
    return wanted[0]


def _layers(text: str | None) -> list[int] | str | None:
    if text is None or text == "all":
        return text
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    words = [word.strip() for word in inner.split(",")] if inner else []
    if not all(re.fullmatch(r"\d{1,6}", word) for word in words):
        raise ValueError(f"layers={text}: give numbers of layers as in layers=[0,5], or layers=all")
    return sorted({int(word) for word in words})


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="kvbench inspect",
        description="What each head keeps of one prompt: memory per layer, policies per head, attention maps.",
        epilog=_EPILOG,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for kvbench, and the settings below")
    parser.add_argument("--format", choices=FORMATS, default="table", help="format of the output")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
