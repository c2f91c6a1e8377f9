"""A model of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvbench.models import settings
from kvbench.models.pretrained import Files, Pretrained

_PATIENCE_S = 60.0  # the client tries for about half a minute, and a command needs a model's files several times
_unreachable_since: dict[str, float] = {}
"""{source: when the hub did not answer}."""


@dataclass(frozen=True)
class Source(Pretrained):
    """The hub's repository `path` (owner/name) at `revision` (a branch, tag or commit; None for main)."""

    path: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        path = settings.text("model.path", self.path)
        settings.text("model.revision", self.revision)
        settings.flag("model.trust_remote_code", self.trust_remote_code)
        if not path:
            raise ValueError("model.path is not set: give model.path=a hub id, owner/name")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            raise ValueError(f"model.path={path}: not a hub id (owner/name); for a folder use model=local")

    def own_name(self) -> str | None:
        return str(self.path).rpartition("/")[2]

    def identity(self) -> str:
        """Return `id@commit`, or `id@revision` while the commit is unknown."""
        return f"hub:{self.path}@{self.commit() or 'main'}"

    def files(self) -> Files:
        remedy = (
            f"on a machine with network and access run `hf download {self.path} --local-dir FOLDER`, "
            "then model=local model.path=FOLDER"
        )
        cached = self._config_json()
        return Files(
            location=str(self.path),
            revision=self.commit(),
            trust_remote_code=self.trust_remote_code,
            setting=f"model.path={self.path}",
            remedy=remedy,
            config_json=cached,
            is_unreachable=cached is None and self._is_unreachable(),
        )

    def commit(self) -> str | None:
        """Return the commit of the local snapshot, else `revision`.

        A run is resumed on the weights it began with even when the branch has moved on. Without a snapshot the small
        config.json is fetched first, which settles the commit.
        """
        cached = self._config_json()
        return self.revision if cached is None else cached.parent.name

    def _config_json(self) -> Path | None:
        """Return config.json in the local cache, fetched if necessary; None when it is out of reach."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        cached = try_to_load_from_cache(str(self.path), "config.json", revision=self.revision)
        if not isinstance(cached, str) and not self._is_unreachable():
            # out of reach: loading will say so, with the remedy; planning and dry runs go on
            try:
                with _without_retry_lines():
                    cached = hf_hub_download(str(self.path), "config.json", revision=self.revision)
            except LocalEntryNotFoundError:  # no connection
                _unreachable_since[str(self)] = time.monotonic()
            except Exception:
                pass
        return Path(cached) if isinstance(cached, str) else None

    def _is_unreachable(self) -> bool:
        """Return True if the hub was asked for the model within the last minute and did not answer."""
        return time.monotonic() - _unreachable_since.get(str(self), -_PATIENCE_S) < _PATIENCE_S


@contextlib.contextmanager
def _without_retry_lines() -> Iterator[None]:
    """Silence the client's lines about every try, of which there are several; the error after the last one says it."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
