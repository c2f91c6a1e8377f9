"""Models in the files of Hugging Face's libraries: safetensors only, remote code only on request.

Whatever is wrong with the files is one line that begins with the override that chose the model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kvbench.common.kinds import is_integer
from kvbench.models import config_file, folder, layers
from kvbench.models.folder import Stored, listing

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_FEWEST_TOKENS = 10
# Buffers that old checkpoints hold and today's models compute.
_COMPUTED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")


@dataclass(frozen=True)
class Files:
    """The arguments of `from_pretrained`, and how an error names the model.

    Attributes:
        location: a folder or a hub id.
        revision: a commit, branch or tag of a hub id.
        trust_remote_code: the user allowed the model's own code to run.
        setting: the override that chose the model; every message begins with it.
        remedy: what to do when files are missing or damaged.
        config_json: the model's config.json; None while it is out of reach.
        is_unreachable: it is known to be out of reach, so there is no use in asking the hub again.
    """

    location: str
    revision: str | None
    trust_remote_code: bool
    setting: str
    remedy: str
    config_json: Path | None
    is_unreachable: bool = False

    @property
    def folder(self) -> Path | None:
        """Return the folder of a model whose files lie in one; None for a hub id."""
        path = Path(self.location)
        return path if path.is_absolute() and path.is_dir() else None


class Pretrained(ABC):
    """A source whose files lie in a folder or on the hub."""

    answers: ClassVar[bool] = True

    @abstractmethod
    def files(self) -> Files:
        """Return where the files are. Raises ValueError when they are out of reach."""

    def config(self) -> PreTrainedConfig:
        """Return the config of transformers, after a check of config.json's sizes."""
        from transformers import AutoConfig

        files = self.files()
        with one_line(files):
            _check_config(files)
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                files.location, revision=files.revision, trust_remote_code=files.trust_remote_code
            )
            return config

    def generation_config(self) -> GenerationConfig:
        """Return the generation config. Without its file it is derived from the config, as transformers does."""
        from transformers import GenerationConfig

        files = self.files()
        config = self.config()
        with one_line(files):
            if files.folder is not None and (files.folder / "generation_config.json").exists():
                folder.read_json(files.folder / "generation_config.json")  # transformers would ignore a damaged one
            try:
                generation = GenerationConfig.from_pretrained(files.location, revision=files.revision or "main")
            except OSError:
                generation = GenerationConfig.from_model_config(config)
            _check_ends(generation.eos_token_id, max(layers.sizes(config, "vocab_size"), default=2**31))
            return generation

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the fast tokenizer."""
        from transformers import AutoTokenizer

        files = self.files()
        with one_line(files):
            _check_config(files)
            if files.folder is not None:
                folder.check(files.folder)
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                files.location, revision=files.revision, trust_remote_code=files.trust_remote_code
            )
            if len(tokenizer) < _FEWEST_TOKENS:  # some versions of transformers invent one where the files are missing
                raise ValueError(f"its tokenizer has {len(tokenizer)} tokens; are the tokenizer's files there?")
            return tokenizer

    def model(self, dtype: str, device: str, device_map: str | None) -> PreTrainedModel:
        """Return the model. Every tensor of the weight files is in it, and it has no others.

        Raises:
            ValueError: files that are damaged, or weights that are missing, left over or of another shape.
        """
        import torch
        from transformers import AutoModelForCausalLM

        files = self.files()
        config = self.config()
        with one_line(files):
            _check_adapter(files)
            if files.folder is not None:
                folder.check(files.folder)
                _check_parameters(config, folder.tensors(files.folder), files.trust_remote_code)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                files.location,
                revision=files.revision,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                device_map=device_map,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=files.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with their names
            )
            model: PreTrainedModel = loaded[0]
            _check_loaded(loaded[1])
            return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and advice of transformers, if it is imported, and restore its settings afterwards."""
    if "transformers" not in sys.modules:
        yield
        return
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
def one_line(files: Files) -> Iterator[None]:
    """Turn whatever goes wrong with a model's files into one line with the remedy.

    Damaged files raise every kind of exception in the libraries that read them, so nothing but a lack of memory is
    let through.
    """
    try:
        with quiet():
            yield
    except MemoryError:
        raise
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{files.setting}: this model brings its own code; if you have read and trust it, set "
                "model.trust_remote_code=true"
            ) from error
        remedy = "install it, or choose another model" if isinstance(error, ImportError) else files.remedy
        raise ValueError(f"{files.setting}: cannot be loaded: {reason(error)}; {remedy}") from error


def reason(error: BaseException, config: Mapping[str, object] | None = None) -> str:
    """Return what an exception says, in one line.

    Args:
        config: content of config.json, to find the key of a value that a table of names does not have.
    """
    if error.__cause__ is not None and "validation" in type(error).__name__.lower():
        return reason(error.__cause__)  # transformers' checks of a config wrap the sentence that says what is wrong
    if isinstance(error, KeyError) and error.args and config is not None:
        keys = config_file.keys_of(config, error.args[0])
        if keys:
            return f"config.json: {', '.join(keys)} is unknown to transformers"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, OSError | ValueError | TypeError | ImportError) and line:
        return line.rstrip(".:;")
    return f"{type(error).__name__}: {line}".rstrip(".:; ")


def _check_config(files: Files) -> None:
    if files.is_unreachable:
        raise OSError("the hub cannot be reached, and its files are not in the local cache")
    if files.config_json is None:
        return
    content = folder.read_json(files.config_json)
    config_file.check(content)
    elsewhere = [str(value) for _, value in sorted(_mapping(content.get("auto_map")).items()) if "--" in str(value)]
    if files.trust_remote_code and elsewhere:
        raise ValueError(f"its code lies in another repository ({elsewhere[0]}), where nothing pins it")


def _check_adapter(files: Files) -> None:
    """Check that transformers will load the adapter that lies next to the weights, if there is one, from safetensors.

    Raises:
        ImportError: peft is missing; transformers would leave the adapter out.
        ValueError: the adapter's weights have another format.
    """
    place = None if files.config_json is None else files.config_json.parent
    if place is None or not (place / "adapter_config.json").exists():
        return
    if importlib.util.find_spec("peft") is None:
        raise ImportError("adapter_config.json is there, and without the package peft its adapter would be left out")
    if files.folder is not None and not (place / "adapter_model.safetensors").exists():
        raise ValueError("adapter_config.json is there without adapter_model.safetensors; no other format is loaded")


def _check_ends(ends: object, vocab_size: int) -> None:
    for end in ends if isinstance(ends, list | tuple) else [ends]:
        if end is not None and not is_integer(end):
            raise ValueError(f"generation_config.json: eos_token_id={ends}: must be a token id or a list of them")
        if end is not None and not 0 <= end < vocab_size:
            raise ValueError(f"generation_config.json: eos_token_id={ends}: must be from 0 to {vocab_size - 1}")


def _check_parameters(config: PreTrainedConfig, stored: Mapping[str, Stored], trust_remote_code: bool) -> None:
    """Compare the parameters of a config with those of the weight files, before memory is taken for any.

    Only a model that would be much larger than its files is refused here. What is left is compared by name after
    loading, when transformers has mapped old names to new ones.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # several numbers share one element of a file
    integers = sorted(name for name, tensor in stored.items() if not tensor.dtype.startswith(("F", "BF")))
    if integers and len(integers) == len(stored):
        raise ValueError(f"{listing(integers)} hold no floating-point numbers, and config.json says nothing about it")
    parameters = {name: tuple(p.shape) for name, p in skeleton(config, trust_remote_code).named_parameters()}
    have = sum(math.prod(tensor.shape) for tensor in stored.values())
    if sum(map(math.prod, parameters.values())) <= 1.5 * have + 1_000_000:
        return
    mismatched = {
        (name, stored[name].shape, shape)
        for name, shape in parameters.items()
        if name in stored and stored[name].shape != shape
    }
    _check_loaded(
        {
            "mismatched_keys": mismatched,
            "missing_keys": set(parameters) - set(stored),
            "unexpected_keys": set(stored) - set(parameters),
        }
    )


def skeleton(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model of a config on the meta device: parameters with shapes and without memory, tied ones shared.

    Raises:
        ValueError: values of the config that no model can be built from, one line.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            model.tie_weights()  # transformers 5.0 does not do it on the meta device
    except Exception as error:
        raise ValueError(f"no model can be built from its config: {reason(error, config.to_dict())}") from error
    return model


def _check_loaded(info: Mapping[str, Iterable[object]]) -> None:
    """Raise ValueError that names the weights that a checkpoint lacks, has left over, or has in another shape."""
    mismatched = sorted(map(_shapes, info.get("mismatched_keys") or ()))
    missing = sorted(map(str, info.get("missing_keys") or ()))
    unexpected = [name for name in sorted(map(str, info.get("unexpected_keys") or ())) if not name.endswith(_COMPUTED)]
    problems = []
    if mismatched:
        problems.append(f"shapes that differ from config.json: {listing(mismatched)}")
    if missing:
        problems.append(f"weights that are missing: {listing(missing)}")
    if unexpected:
        problems.append(f"weights that the model has no place for: {listing(unexpected)}")
    if problems:
        raise ValueError("the weight files do not fit config.json: " + "; ".join(problems))


def _shapes(entry: object) -> str:
    if not isinstance(entry, tuple) or len(entry) != 3:
        return str(entry)
    name, stored, wanted = entry
    return f"{name} {list(stored)} instead of {list(wanted)}"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
