"""Models in the files of Hugging Face's libraries: safetensors only, remote code only on request."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from hashlib import _Hash

    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MIB = 1 << 20
# apart from the weights, what changes a model's answers
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)


@dataclass(frozen=True)
class Files:
    """What `from_pretrained` needs, and how an error names it.

    Attributes:
        location: a folder or a hub id.
        revision: a commit, branch or tag of a hub id.
        trust_remote_code: the user allowed the model's own code to run.
        setting: the override that chose the model; every message begins with it.
        remedy: what to do when files are missing or damaged.
    """

    location: str
    revision: str | None
    trust_remote_code: bool
    setting: str
    remedy: str


class Pretrained(ABC):
    """A source whose files lie in a folder or on the hub."""

    answers: ClassVar[bool] = True

    @abstractmethod
    def files(self) -> Files:
        """Return where the files are. Raises ValueError when they are out of reach."""

    def config(self) -> PreTrainedConfig:
        from transformers import AutoConfig

        files = self.files()
        with _one_line(files):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                files.location, revision=files.revision, trust_remote_code=files.trust_remote_code
            )
            return config

    def generation_config(self) -> GenerationConfig:
        """Return the generation config. Without its file it is derived from the config, as transformers does."""
        from transformers import GenerationConfig

        files = self.files()
        try:
            return GenerationConfig.from_pretrained(files.location, revision=files.revision or "main")
        except OSError:
            return GenerationConfig.from_model_config(self.config())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        files = self.files()
        with _one_line(files):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                files.location, revision=files.revision, trust_remote_code=files.trust_remote_code
            )
            return tokenizer

    def model(self, dtype: str, device: str, device_map: str | None) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        files = self.files()
        with _one_line(files):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                files.location,
                revision=files.revision,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                device_map=device_map,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=files.trust_remote_code,
            )
            return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and advice of transformers, and restore its settings afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_line(files: Files) -> Iterator[None]:
    """Turn the many ways in which loading fails into one line with the remedy."""
    try:
        with quiet():
            yield
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{files.setting}: this model brings its own code; if you have read and trust it, set "
                "model.trust_remote_code=true"
            ) from error
        raise ValueError(f"{files.setting}: cannot be loaded ({reason}); {files.remedy}") from error


def folder_hash(folder: Path) -> str:
    """Hash small files whole; of each weight file its size, header, first and last MiB: fast for any size."""
    digest = hashlib.sha256()
    for name in SMALL_FILES:
        if (folder / name).is_file():
            _add(digest, name, (folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")  # safetensors: 8 bytes of length, then JSON
            if header > size:
                raise ValueError(f"model.path={folder}: {path.name} is cut short; download it again")
            file.seek(0)
            head = file.read(max(header, MIB))
            file.seek(max(0, size - MIB))
            _add(digest, f"{path.name} {size}", head + file.read())
    return digest.hexdigest()


def _add(digest: _Hash, name: str, content: bytes) -> None:
    # lengths keep two neighbouring files from being read as another pair
    digest.update(f"{name}\0{len(content)}\0".encode() + content)
