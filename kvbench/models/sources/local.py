"""A folder with config.json, tokenizer files and *.safetensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvbench.models import folder, settings
from kvbench.models.pretrained import Files, Pretrained, one_line


@dataclass(frozen=True)
class Source(Pretrained):
    """The model in the folder `path`."""

    path: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        path = settings.text("model.path", self.path)
        settings.flag("model.trust_remote_code", self.trust_remote_code)
        if not path:
            raise ValueError("model.path is not set: give model.path=a folder with config.json and *.safetensors")
        try:
            has_config = (self._folder() / "config.json").is_file()
            has_weights = any(self._folder().glob("*.safetensors"))
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, "~nobody", a null character
            raise ValueError(f"model.path={path!r}: not a folder's name ({error})") from None
        if not has_config:
            raise ValueError(f"model.path={path}: no config.json there; give the folder of a downloaded model")
        if not has_weights:
            raise ValueError(f"model.path={path}: no *.safetensors there; other weight formats are not loaded")

    def own_name(self) -> str | None:
        """Return the folder's name; of a snapshot in the hub's cache, the repository's."""
        place = Path(os.path.abspath(Path(self.path or "").expanduser()))  # links keep the name that the user gave
        if place.parent.name == "snapshots" and place.parents[1].name.startswith("models--"):
            return place.parents[1].name.rpartition("--")[2]
        return place.name

    def identity(self) -> str:
        """Return a hash of the folder's files, see `kvbench.models.folder.identity`."""
        place = self._folder()
        with one_line(self.files()):
            folder.check(place)
            return "local:" + folder.identity(place, with_code=self.trust_remote_code)

    def files(self) -> Files:
        remedy = "download it again, or choose another model.path"
        return Files(
            location=str(self._folder()),
            revision=None,
            trust_remote_code=self.trust_remote_code,
            setting=f"model.path={self.path}",
            remedy=remedy,
            config_json=self._folder() / "config.json",
        )

    def _folder(self) -> Path:
        return Path(self.path or "").expanduser().resolve()
