"""The texts that RULER is made of: upstream's files when they are there, kvbench's own otherwise."""

from __future__ import annotations

import hashlib
import json
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
from kvbench.data import manifest

GET = "get it with `python -m kvbench.data ruler`"
EMBEDDED_VERSION = "embedded-1"  # raise when kvbench's own words, prose or splitter change
_WORDS = "wonderwords-2.2.0"  # another version of the package gives other needles for the same seed
_PUNKT = "nltk_data/tokenizers/punkt_tab/english"
_ESSAYS = "PaulGrahamEssays.json"


class Sources:
    """Word lists, essays, sentence splitter and question sets. Every file is read when a task first needs it.

    version: "upstream" for files, "embedded-1" for kvbench's own texts. Scores on one do not compare with the other.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.version = EMBEDDED_VERSION if folder is None else "upstream"
        self.sentences = lru_cache(maxsize=64)(self._sentences)

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Sources:
        """The sources in a folder; None: the prepared <KVBENCH_CACHE>/data/ruler if it is whole, else the embedded.

        "embedded" asks for the embedded ones. Raises ValueError if there is no such folder; a file that is missing in
        it is an error when a task needs it.
        """
        if folder == "embedded":
            return cls(None)
        if folder is None:
            prepared = cache_dir() / "data" / "ruler"
            return cls(prepared if (prepared / "manifest.json").is_file() else None)
        path = Path(folder).expanduser()
        if not os.path.isdir(path):  # which is False for an impossible name, too
            raise ValueError(f"benchmark.path={folder}: no such folder; {GET}")
        return cls(path)

    def checksums(self, task: str) -> dict[str, str]:
        """sha256 of the files that a task is made of, by name: what belongs into a protocol beside `version`."""
        return {name: self._sha256(name) for name in self._files(task)} if self.folder else {}

    def require(self, task: str) -> None:
        """Raise ValueError if a file that a task is made of is missing or damaged. What is read here is kept."""
        self.checksums(task)
        found = find_task(task)
        if found.family.name == "qa":
            self.questions(found.args["dataset"])
        elif found.family.name == "cwe":
            _ = self.nouns, self.adjectives, self.verbs, self.more_words
        elif found.args.get("haystack") == "essay":
            self.sentences(1)

    def _files(self, task: str) -> list[str]:
        found = find_task(task)
        family, args = found.family.name, found.args
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

    def _sha256(self, name: str) -> str:
        found = hashlib.sha256(self._existing(name).read_bytes()).hexdigest()
        assert self.folder is not None
        if manifest.read(self.folder).get("files", {}).get(name, {}).get("sha256", found) != found:
            raise ValueError(f"{self._path(name)}: changed since it was prepared; python -m kvbench.data ruler --force")
        return found

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._existing(name).read_text(encoding="utf-8"))
        except ValueError as error:
            if not isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
                raise
            raise ValueError(f"benchmark.path={self.folder}: {name} is damaged ({error}); {GET}") from error

    def _words(self, kind: str) -> list[str]:
        # an empty line counts as a word: so does upstream
        with self._existing(f"{_WORDS}/{kind}list.txt").open(encoding="utf-8") as file:
            found = [line.rstrip() for line in file]
        if not any(found):
            raise ValueError(f"benchmark.path={self.folder}: {_WORDS}/{kind}list.txt is empty; {GET}")
        return found

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
        """Where cwe takes its words when it needs more than the three lists hold; empty if there is nothing.

        Upstream's english_words.json is optional: it only matters around 128k tokens and above.
        """
        if self.folder is None:
            return self.pairs
        if self._path("english_words.json").is_file():
            return list(self._json("english_words.json").values())
        return []

    @cached_property
    def essay_words(self) -> list[str]:
        """The essays, split at white space."""
        if self.folder is None:
            return re.sub(r"\s+", " ", generated(seed=0, min_chars=2_000_000).strip()).split(" ")
        made = self._json(_ESSAYS)
        text = made.get("text") if isinstance(made, dict) else None
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
        """The first `number` essay words as sentences; the essays start again when they are used up."""
        repeats = -(-number // len(self.essay_words))
        return self._splitter(" ".join((self.essay_words * repeats)[:number]).strip())

    def questions(self, dataset: str) -> Questions:
        """The question set "squad" or "hotpotqa". Raises ValueError without its file."""
        if dataset not in self._questions:
            name = self._question_file(dataset)
            data = self._json(name)
            try:
                self._questions[dataset] = squad(data) if dataset == "squad" else hotpotqa(data)
            except (KeyError, TypeError, ValueError) as error:
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
        # a part of hotpotqa goes by another name, such as hotpotqa_first100.json
        found = sorted(self.folder.glob("hotpotqa*.json")) if dataset == "hotpotqa" else []
        exact = f"{dataset}.json"
        name = found[0].name if found and not self._path(exact).is_file() else exact
        if not self._path(name).is_file():
            raise ValueError(f"benchmark.tasks=[{task}]: no {name} in {self.folder}; {GET}")
        return name
