"""A folder with config.json, tokenizer files and *.safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvbench.models import settings
from kvbench.models.pretrained import Files, Pretrained, folder_hash


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
        folder = self._folder()
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path={path}: no config.json there; give the folder of a downloaded model")
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"model.path={path}: no *.safetensors there; other weight formats are not loaded")

    def own_name(self) -> str | None:
        return self._folder().name

    def identity(self) -> str:
        """Return a hash of the folder's small files and of each weight file's size, header and ends."""
        return "local:" + folder_hash(self._folder())

    def files(self) -> Files:
        remedy = "download it again, or choose another model.path"
        return Files(str(self._folder()), None, self.trust_remote_code, f"model.path={self.path}", remedy)

    def _folder(self) -> Path:
        return Path(self.path or "").expanduser().resolve()
