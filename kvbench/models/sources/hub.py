"""A model of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from kvbench.models import settings
from kvbench.models.pretrained import Files, Pretrained


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

        cached = try_to_load_from_cache(str(self.path), "config.json", revision=self.revision)
        if not isinstance(cached, str):
            # out of reach: loading will say so, with the remedy; planning and dry runs go on
            with contextlib.suppress(Exception):
                cached = hf_hub_download(str(self.path), "config.json", revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None
