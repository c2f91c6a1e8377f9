"""A mechanical check of how docstrings begin, and of a few words.

`python -m tests.helpers.english kvbench/store` lists the faults below a folder. It finds the form, not the sense: a
sentence that passes can still be a bad one.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

VERBS = frozenset(Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8").split())
_HEADLESS = re.compile(
    r"(What|Whatever|Who|Whose|Whether|Which|Why|How|Where|Wherever|As|Of|The same|Those|Everything|Nothing|Nobody|"
    r"Somebody|All (that|who|there)|Does|Is|Are|Has|Have|Made|Added)\b"
)
# Test docstrings may be sentences, which may begin so.
_PREPOSITION = re.compile(r"(When|That|From|In|On|At|For|By|With|Without|After|Before|Between|Inside|Within|There)\b")
# Third-person verbs that begin a sentence without a subject; "Runs", "Scores" and the like are nouns as often.
_THIRD_PERSON = re.compile(
    r"(Returns|Draws|Reads|Attends|Appends|Keeps|Holds|Makes|Takes|Gives|Says|Tells|Computes|Builds|Writes|Finds|"
    r"Chooses|Splits|Raises|Stores|Loads|Gets|Puts|Lets|Checks|Turns|Wants|Needs|Knows|Gathers|Follows|Waits|Measures)\b"
)
_BANNED_WORDS = re.compile(r"\b(beside|anew|behind|be had|so many|pass(es|ed) over|somebody)\b", re.IGNORECASE)
_BANNED_NAMES = {"made", "one", "found", "said", "mine"}
_PROSE = {"prose.py", "later.py", "english.py", "test_english.py"}  # their texts are data
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module) -> Iterator[tuple[Documented, str]]:
    """Yield (node, docstring) of the module and of every class and function in it."""
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield node, text


def fault_of(node: Documented, docstring: str) -> str | None:
    """Return what is wrong with the first line of a docstring; None if nothing is."""
    line = docstring.splitlines()[0]
    words = [word.strip(".,:;") for word in line.split()]
    is_test = isinstance(node, _FUNCTION) and _is_test(node)
    if _HEADLESS.match(line) or (_PREPOSITION.match(line) and not is_test):
        return "a clause without a head"
    if _THIRD_PERSON.match(line):
        return "a sentence without a subject"
    if isinstance(node, _FUNCTION):
        is_verb = (words[0] in VERBS and words[1:2] != ["of"]) or line.startswith("Same as ")
        if not is_verb and not _is_property(node) and not is_test:
            return "a function's docstring starts with an imperative, a verb of tests/helpers/verbs.txt"
    elif words[0] in {"Return", "Compute", "Get", "Make", "Let", "Say", "Tell"}:
        return "the docstring of a class or a module is a noun phrase"
    elif re.match(r"[a-z]+\b:", line) and not line.startswith("kvbench:"):
        return "the first line says what the class is, not what a field is"
    return None


def docstring_faults(file: Path) -> list[str]:
    """Return one line per docstring in `file` whose first line has the wrong form."""
    faults = []
    for node, text in documented(ast.parse(file.read_text(encoding="utf-8"))):
        if (fault := fault_of(node, text)) is not None:
            faults.append(f"{file}:{getattr(node, 'lineno', 1)}: {fault}: {text.splitlines()[0]!r}")
    return faults


def text_faults(file: Path) -> list[str]:
    """Return one line per banned word in a file that is not Python: a document, a configuration, a script."""
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    return [
        f"{file}:{n}: {word[0]!r}: {line.strip()[:80]}" for n, line in lines for word in _BANNED_WORDS.finditer(line)
    ]


def word_faults(file: Path) -> list[str]:
    """Return one line per banned word in the comments and texts of `file`, and per banned name that it binds."""
    source = file.read_text(encoding="utf-8")
    faults = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_text = token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)) and file.name not in _PROSE
        if token.type == tokenize.COMMENT or is_text:
            for offset, text in enumerate(token.string.splitlines()):
                for word in _BANNED_WORDS.finditer(text):
                    faults.append(f"{file}:{token.start[0] + offset}: {word[0]!r}: {text.strip()[:80]}")
    for name, line in _bound_names(ast.parse(source)):
        if name in _BANNED_NAMES:
            faults.append(f"{file}:{line}: a variable named {name!r}")
    return faults


def python_files(path: Path) -> list[Path]:
    """Return the Python files below `path`, scripts without an ending included; `path` itself if it is a file."""
    if path.is_file():
        return [path]
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return [file for file in files if file.suffix == ".py" or (not file.suffix and _has_python_shebang(file))]


def _has_python_shebang(file: Path) -> bool:
    with file.open("rb") as stream:
        return re.match(rb"#!.*python", stream.readline()) is not None


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)


def _is_test(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    is_fixture = any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
    return is_fixture or node.name.startswith("test_")


def _bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def main(paths: Iterable[str]) -> int:
    """Print the faults of all Python files below `paths`; return 1 if there are any."""
    files = [file for path in paths for file in python_files(Path(path))]
    faults = [fault for file in files for fault in docstring_faults(file) + word_faults(file)]
    print(*faults, f"{len(faults)} faults in {len(files)} files", sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
