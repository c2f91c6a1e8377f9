"""The texts that RULER's samples consist of: upstream's files when they are there, kvbench's own otherwise."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from kvbench.benchmarks.prose import generated
from kvbench.benchmarks.ruler import sentences, words
from kvbench.benchmarks.ruler.documents import Questions, hotpotqa, squad
from kvbench.benchmarks.ruler.tasks import find_task
from kvbench.common.paths import cache_dir
from kvbench.data import inventory
from kvbench.data.text import read_bytes, read_json, read_lines

GET = "get it with `kvbench data ruler`"
EMBEDDED_VERSION = "embedded-1"  # raise when kvbench's own words, prose or splitter change
_WORDS = "wonderwords-2.2.0"  # another version of the package gives other needles for the same seed
_PUNKT = "nltk_data/tokenizers/punkt_tab/english"
_ESSAYS = "PaulGrahamEssays.json"


class Sources:
    """Word lists, essays, sentence splitter and question sets. Each file is read when a task first needs it.

    version: "upstream" for files, "embedded-1" for kvbench's own texts. Scores on one do not compare with the other.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.version = EMBEDDED_VERSION if folder is None else "upstream"
        self.sentences = lru_cache(maxsize=64)(self._sentences)
        self._sha256 = lru_cache(maxsize=None)(self._checksum)

    @staticmethod
    def load(folder: str | Path | None = None) -> Sources:
        """Open the sources in a folder; None: the prepared <KVBENCH_CACHE>/data/ruler if complete, else the embedded.

        "embedded" asks for the embedded ones. Raises ValueError if there is no such folder; a file that is missing in
        it is an error when a task needs it. All tasks of a process share the sources of a folder while its files stay
        as they are.
        """
        if folder == "embedded":
            return _opened(None, ())
        if folder is None:
            prepared = cache_dir() / "data" / "ruler"
            return _opened(prepared, _state(prepared)) if (prepared / "manifest.json").is_file() else _opened(None, ())
        path = Path(folder).expanduser()
        if not os.path.isdir(path):  # which is False for an impossible name, too
            raise ValueError(f"benchmark.path={folder}: no such folder; {GET}")
        return _opened(path, _state(path))

    def checksums(self, task: str) -> dict[str, str]:
        """Return the sha256 of a task's files by name: with `version`, the part of the sources in a protocol."""
        return {name: self._sha256(name) for name in self._files(task)} if self.folder else {}

    def require(self, task: str) -> None:
        """Raise ValueError if a file that a task needs is missing or damaged. What is read here is kept."""
        self.checksums(task)
        spec = find_task(task)
        if spec.family.name == "qa":
            self.questions(spec.args["dataset"])
        elif spec.family.name == "cwe":
            _ = self.nouns, self.adjectives, self.verbs, self.more_words
        elif spec.args.get("haystack") == "essay":
            self.sentences(1)

    def _files(self, task: str) -> list[str]:
        spec = find_task(task)
        family, args = spec.family.name, spec.args
        if family == "qa":
            return [self._question_file(args["dataset"])]
        names = []
        if family == "cwe" or "words" in (args.get("key"), args.get("value")):
            names += [f"{_WORDS}/adjectivelist.txt", f"{_WORDS}/nounlist.txt"]
        if family == "cwe":
            names.append(f"{_WORDS}/verblist.txt")
            names += ["english_words.json"] if self._path("english_words.json").is_file() else []
        if args.get("haystack") == "essay":
            names += [_ESSAYS, *(f"{_PUNKT}/{name}" for name in sentences.PUNKT_FILES)]
        return names

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    def _existing(self, name: str) -> Path:
        if not self._path(name).is_file():
            raise ValueError(f"benchmark.path={self.folder}: no {name} in it; {GET}")
        return self._path(name)

    def _checksum(self, name: str) -> str:
        checksum = hashlib.sha256(read_bytes(self._existing(name))).hexdigest()
        assert self.folder is not None
        if inventory.read(self.folder).get("files", {}).get(name, {}).get("sha256", checksum) != checksum:
            raise ValueError(f"{self._path(name)}: changed since it was prepared; kvbench data ruler --force")
        return checksum

    def _json(self, name: str) -> Any:
        path = self._existing(name)
        try:
            return read_json(path)
        except ValueError as error:
            raise ValueError(f"benchmark.path={self.folder}: {name} is damaged ({error}); {GET}") from None

    def _words(self, kind: str) -> list[str]:
        path = self._existing(f"{_WORDS}/{kind}list.txt")
        try:
            lines, _ = read_lines(path)
        except ValueError as error:
            raise ValueError(f"benchmark.path={self.folder}: {error}; {GET}") from None
        if not lines:
            raise ValueError(f"benchmark.path={self.folder}: {_WORDS}/{kind}list.txt is empty; {GET}")
        return [line.rstrip() for line in lines]  # an empty line counts as a word, as upstream

    @cached_property
    def nouns(self) -> list[str]:
        """Nouns, in the order of their list."""
        return self._words("noun") if self.folder else words.NOUNS

    @cached_property
    def adjectives(self) -> list[str]:
        """Adjectives, in the order of their list."""
        return self._words("adjective") if self.folder else words.ADJECTIVES

    @cached_property
    def verbs(self) -> list[str]:
        """Verbs, in the order of their list."""
        return self._words("verb") if self.folder else words.VERBS

    @cached_property
    def pairs(self) -> words.WordPairs:
        """All "adjective-noun", sorted: the keys of needles."""
        return words.WordPairs(self.adjectives, self.nouns)

    @cached_property
    def more_words(self) -> Sequence[str]:
        """The words that cwe takes when it needs more than the three lists hold; empty if there are none.

        Upstream's english_words.json is optional: it only matters around 128k tokens and above.
        """
        if self.folder is None:
            return self.pairs
        if self._path("english_words.json").is_file():
            words = self._json("english_words.json")
            if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
                raise ValueError(f"benchmark.path={self.folder}: english_words.json is not a list of words; {GET}")
            return list(words.values())
        return []

    @cached_property
    def essay_words(self) -> list[str]:
        """The essays, split at white space."""
        if self.folder is None:
            return re.sub(r"\s+", " ", generated(seed=0, min_chars=2_000_000).strip()).split(" ")
        content = self._json(_ESSAYS)
        text = content.get("text") if isinstance(content, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"benchmark.path={self.folder}: {_ESSAYS} holds no text; {GET}")
        return re.sub(r"\s+", " ", text).split(" ")

    @cached_property
    def _splitter(self) -> Callable[[str], list[str]]:
        if self.folder is None:
            return sentences.simple
        for name in sentences.PUNKT_FILES:
            self._existing(f"{_PUNKT}/{name}")
        return sentences.punkt(self._path(_PUNKT))

    def _sentences(self, number: int) -> list[str]:
        """Return the first `number` essay words as sentences; the essays start again when they are used up."""
        repeats = -(-number // len(self.essay_words))
        return self._splitter(" ".join((self.essay_words * repeats)[:number]).strip())

    def questions(self, dataset: str) -> Questions:
        """Return the question set "squad" or "hotpotqa". Raises ValueError without its file."""
        if dataset not in self._questions:
            name = self._question_file(dataset)
            data = self._json(name)
            try:
                self._questions[dataset] = squad(data) if dataset == "squad" else hotpotqa(data)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                layout = f"not in the layout of {dataset} ({error!r})"
                raise ValueError(f"benchmark.path={self.folder}: {name} is {layout}; {GET}") from error
        return self._questions[dataset]

    @cached_property
    def _questions(self) -> dict[str, Questions]:
        return {}

    def _question_file(self, dataset: str) -> str:
        task = {"squad": "qa_1", "hotpotqa": "qa_2"}[dataset]
        if self.folder is None:
            raise ValueError(f"benchmark.tasks=[{task}]: its questions are not here; {GET}")
        # a part of hotpotqa has another name, such as hotpotqa_first100.json
        parts = sorted(self.folder.glob("hotpotqa*.json")) if dataset == "hotpotqa" else []
        exact = f"{dataset}.json"
        name = parts[0].name if parts and not self._path(exact).is_file() else exact
        if not self._path(name).is_file():
            raise ValueError(f"benchmark.tasks=[{task}]: no {name} in {self.folder}; {GET}")
        return name


@lru_cache(maxsize=2)
def _opened(folder: Path | None, state: tuple[tuple[str, int, int], ...]) -> Sources:
    return Sources(folder)


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the name, time of change and size of every file that a task may read."""
    known = [folder / name for name in ("manifest.json", _ESSAYS, "english_words.json", "squad.json")]
    known += [*folder.glob("hotpotqa*.json"), *(folder / _WORDS).glob("*"), *(folder / _PUNKT).glob("*")]
    stats = [(path, path.stat()) for path in sorted(known) if path.is_file()]
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)
