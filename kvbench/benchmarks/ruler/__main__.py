"""`python -m kvbench.benchmarks.ruler --length 4096 --tokenizer DIR --out DIR`: write RULER files as upstream does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench.benchmarks.ruler import FITS, TASKS, TEMPLATES, RulerRequest, Sources, rows, save_records
from kvbench.benchmarks.ruler.tasks import find_task
from kvbench.common.command import Parser, command, say


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Write <out>/<task>.jsonl for each task. Returns 2 if a task could not be written, after all others were."""
    parser = Parser(
        prog="python -m kvbench.benchmarks.ruler",
        description="Generate RULER samples (arXiv 2404.06654), one JSONL file per task, as NVIDIA/RULER writes them.",
    )
    parser.add_argument("--tasks", default="all", help="names with commas between them; all (default) for the 13")
    parser.add_argument("--length", type=int, required=True, help="tokens of a prompt and its answer, e.g. 4096")
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="a tokenizer.json, a folder that holds one, or words to count words",
    )
    parser.add_argument("--num", type=int, default=500, help="samples per task (500)")
    parser.add_argument("--seed", type=int, default=42, help="random seed (42, as published)")
    parser.add_argument(
        "--sources",
        help="folder with the essays, word lists and questions; embedded for kvbench's own texts; "
        "without it the folder that `kvbench data ruler` prepares, or else the embedded ones",
    )
    parser.add_argument(
        "--template", default="base", help=f"wrapper: {', '.join(TEMPLATES)}, or a text with {{task_template}}"
    )
    parser.add_argument("--fit", default="head", choices=FITS, help="generator: of today, or of 2024")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    args = parser.parse_args(argv)
    names = list(TASKS) if args.tasks == "all" else [find_task(name).name for name in args.tasks.split(",")]
    tokenizer, sources = _tokenizer(args.tokenizer), Sources.load(args.sources)
    status = 0
    for name in names:
        try:
            _write(name, tokenizer, sources, args)
        except ValueError as error:
            say(str(error))
            status = 2
    return status


def _write(name: str, tokenizer: Any, sources: Sources, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    request = RulerRequest(
        name,
        args.length,
        tokenizer,
        num_samples=args.num,
        seed=args.seed,
        sources=sources,
        template=args.template,
        fit=args.fit,
    )
    save_records(args.out / f"{name}.jsonl", tqdm(rows(request), total=args.num, desc=name))


def _tokenizer(name: str) -> Any:
    """Load a tokenizer with the light library `tokenizers`: counting needs no transformers."""
    if name == "words":
        return name
    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"--tokenizer {name}: no tokenizer.json there; name a file, a folder with one, or words")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"--tokenizer {name}: {file} is no tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


if __name__ == "__main__":
    raise SystemExit(main())
