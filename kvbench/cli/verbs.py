"""The front door: `kvbench <verb> …`, where what is no verb belongs to `run`.

A verb's module is imported when the verb is asked for, so that `kvbench --help` loads nothing heavy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from kvbench import __version__
from kvbench.common.command import command
from kvbench.common.suggest import did_you_mean


@dataclass(frozen=True)
class Verb:
    """A command: where its `main(argv)` is, as module:function, and what it does."""

    target: str
    help: str


VERBS = {
    "run": Verb("kvbench.cli.run:main", "compute one run, or a sweep with -m; the word may be left out"),
    "report": Verb("kvbench.report.__main__:main", "print tables of stored runs, write tables and figures"),
    "view": Verb("kvbench.report.view.__main__:main", "write one HTML file to look at runs and their answers"),
    "export": Verb("kvbench.report.export.__main__:main", "write stored runs as parquet, Every Eval Ever or lm-eval"),
    "status": Verb("kvbench.status.__main__:main", "list what is done and what is missing, and how to resume"),
    "log": Verb("kvbench.run.log:main", "send stored results to W&B or Trackio"),
    "score": Verb("kvbench.run.score:main", "score stored answers again, without a model"),
    "data": Verb("kvbench.data.__main__:main", "download and check the data of the published benchmarks"),
    "prompts": Verb("kvbench.prompts.__main__:main", "print a prompt as the model reads it"),
    "inspect": Verb("kvbench.profile.inspect_command:main", "show what each head keeps of a prompt and looks at"),
    "profile": Verb("kvbench.profile.__main__:main", "measure time and memory over context, budget and batch"),
    "layers": Verb("kvbench.run.layers.command:main", "calibrate drop ratios of layers, for method=prefixkv_offline"),
    "heads": Verb("kvbench.run.heads.command:main", "score the attention heads of a model, for method=headkv"),
    "kernels": Verb("kvbench_kernels.__main__:main", "build, list and check the kernels"),
    "methods": Verb("kvbench.cli.methods:main", "list the methods; with names, their parts and dials"),
}
_WORD = re.compile(r"[A-Za-z][\w-]*")
_EXAMPLES = """\
examples:
  kvbench method=snapkv budget=128                           one run: SmolLM2-135M on the needle test
  kvbench -m method=snapkv,ada_snapkv budget=64,128,0.2      a sweep, which shares its prefills
  kvbench report outputs/runs                                the tables of what is stored
  kvbench methods snapkv                                     a method and its dials

kvbench run --help: all that can be chosen and set. `python -m kvbench` is the same command."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments begin with, or `run`; without arguments, print the overview.

    Returns the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and _WORD.fullmatch(arguments[0]):
        if arguments[0] not in VERBS:
            raise ValueError(_unknown(arguments[0]))
        return _dispatch(arguments[0], arguments[1:])
    if arguments == ["--version"]:
        print(f"kvbench {__version__}")
        return 0
    if arguments in ([], ["--help"], ["-h"]):
        print(overview())
        return 0
    return _dispatch("run", arguments)


def overview() -> str:
    """Return the list of verbs with a few examples, for `--help`."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    head = ["usage: kvbench [run] key=value …", "       kvbench VERB --help", ""]
    return "\n".join([*head, *lines, "", _EXAMPLES])


def _unknown(word: str) -> str:
    """Return the complaint about a first word that is no verb: a setting without its value, or a typing error."""
    from kvbench.config import Config

    if word in Config.__dataclass_fields__:
        return f"{word}: a setting needs a value, as in {word}=…; see kvbench --help"
    return f"{word}: no such command.{did_you_mean(word, VERBS)}"


def _dispatch(name: str, arguments: Sequence[str]) -> int:
    """Import the verb and run it under the common policy, which also covers mistakes that show while importing."""
    module, _, function = VERBS[name].target.partition(":")
    status: int = command(getattr(import_module(module), function))(arguments)
    return status
