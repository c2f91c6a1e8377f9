"""Hugging Face models: by hub id or from a local folder. Safetensors only; remote code only on request."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MIB = 1 << 20
# besides the weights, what changes a model's answers
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)


def check(cfg: Mapping[str, Any]) -> None:
    """Validate the path of a hub or local model. Raises ValueError."""
    kind, path = cfg["kind"], cfg.get("path")
    if not path:
        what = "a folder with config.json and *.safetensors" if kind == "local" else "a hub id, owner/name"
        raise ValueError(f"model.path is not set: give model.path={what}")
    if kind == "hub":
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            raise ValueError(f"model.path={path}: not a hub id (owner/name); for a folder use model=local")
        return
    folder = Path(path).expanduser()
    if cfg.get("revision") is not None:
        raise ValueError(f"model.revision={cfg['revision']}: a local folder has no revision; set it to null")
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.path={path}: no config.json there; give the folder of a downloaded model")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"model.path={path}: no *.safetensors there; other weight formats are not loaded")


def identity(cfg: Mapping[str, Any]) -> str:
    """Local: a hash of the folder. Hub: `id@commit`, or `id@revision` while no commit can be found out."""
    name, revision = source(cfg)
    return "local:" + _folder_hash(Path(name)) if cfg["kind"] == "local" else f"hub:{name}@{revision or 'main'}"


def source(cfg: Mapping[str, Any]) -> tuple[str, str | None]:
    """What to hand to `from_pretrained`: (folder, None) or (hub id, commit or revision).

    The commit is that of the local snapshot, so a run is resumed on the weights it began with even when the
    branch has moved on. Without a snapshot the small config.json is fetched first, which settles the commit.
    """
    if cfg["kind"] == "local":
        return str(Path(cfg["path"]).expanduser().resolve()), None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    path, revision = cfg["path"], cfg.get("revision")
    found = try_to_load_from_cache(path, "config.json", revision=revision)
    if not isinstance(found, str):
        # out of reach: loading will say so, with the remedy; planning and dry runs go on
        with contextlib.suppress(Exception):
            found = hf_hub_download(path, "config.json", revision=revision)
    return path, Path(found).parent.name if isinstance(found, str) else revision


def load_tokenizer(cfg: Mapping[str, Any], name: str, revision: str | None) -> Any:
    """The fast tokenizer. Raises ValueError when out of reach."""
    from transformers import AutoTokenizer

    with _reachable(cfg):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=_trust(cfg))


def load_config(cfg: Mapping[str, Any], name: str, revision: str | None) -> Any:
    """The model's config, no weights. Raises ValueError when out of reach."""
    from transformers import AutoConfig

    with _reachable(cfg):
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=_trust(cfg))


def load_generation_config(cfg: Mapping[str, Any], name: str, revision: str | None) -> Any:
    """The generation config, made from the model's config when there is none, as transformers does."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(name, revision=revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(load_config(cfg, name, revision))


def load_model(cfg: Mapping[str, Any], name: str, revision: str | None) -> Any:
    """The causal language model in `cfg["dtype"]`. Raises ValueError when out of reach."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = "auto" if cfg["dtype"] == "auto" else getattr(torch, cfg["dtype"])
    with _reachable(cfg):
        return AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            device_map=cfg.get("device_map"),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=_trust(cfg),
        )


def _trust(cfg: Mapping[str, Any]) -> bool:
    return cfg.get("trust_remote_code") is True


@contextlib.contextmanager
def _reachable(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Turn the many ways in which files cannot be had into one line with the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"model.trust_remote_code=false: {cfg['path']} brings its own code; read it, then set true"
            ) from error
        if cfg["kind"] != "hub":
            raise ValueError(f"model.path={cfg.get('path')}: cannot be loaded ({reason})") from error
        raise ValueError(
            f"model.path={cfg['path']}: not in reach ({reason}); on a machine with network and access run "
            f"`huggingface-cli download {cfg['path']} --local-dir FOLDER`, then model=local model.path=FOLDER"
        ) from error


def _folder_hash(folder: Path) -> str:
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


def _add(digest: Any, name: str, content: bytes) -> None:
    # lengths keep two neighbouring files from being read as another pair
    digest.update(f"{name}\0{len(content)}\0".encode() + content)
