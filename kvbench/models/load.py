"""The loading of a `ModelSpec`: the model ready for inference, or what is known of it without its weights.

torch and transformers are imported inside functions only, so that planning a sweep stays fast.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from kvbench.models import decoding, layers
from kvbench.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_SPECS: WeakKeyDictionary[PreTrainedModel, ModelSpec] = WeakKeyDictionary()  # of the models that `load` returned


@dataclass
class Loaded:
    """A model in eval mode without gradients, its tokenizer, and what a decode loop must know of them.

    Attributes:
        engine_tokenizer: the tokenizer with the chat template as model.chat_template and model.chat_kwargs have it, for
            methods that ask for what it writes; without one under chat_template=never.
        eos_ids: token ids that end an answer.
        max_length: tokens of the longest prompt with its answer: model.max_length, else the model's own limit.
        hints: dials that suit this model's tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine_tokenizer: PreTrainedTokenizerBase
    name: str
    device: str
    eos_ids: frozenset[int]
    max_length: int | None
    hints: dict[str, object]


class EndIds(NamedTuple):
    """Ids that end an answer: all that the model's files name, those of its generation config, the tokenizer's only."""

    all: frozenset[int] = frozenset()
    model: frozenset[int] = frozenset()
    tokenizer: frozenset[int] = frozenset()


def load(spec: ModelSpec) -> Loaded:
    """Load model and tokenizer: eval mode, no gradients, attention set to "sdpa".

    Raises:
        ValueError: a missing GPU, weights that are out of reach or damaged; one line naming the override.
    """
    place, config = device(spec), checked_config(spec)
    tokenizer = spec.source.tokenizer()
    _check_vocabulary(spec, config, tokenizer)
    model = spec.source.model(spec.dtype, place, spec.device_map)
    if spec.device_map is None:
        model = model.to(place)  # type: ignore[arg-type]
    model.eval()
    model.requires_grad_(False)
    limit = _length(spec, model.config)
    ends = _end_ids(model.generation_config, tokenizer).all
    _say_ignored(spec, decoding.ignored(spec.source.generation_config()))
    _SPECS[model] = spec
    return Loaded(model, tokenizer, _for_engine(tokenizer, spec), spec.name, str(model.device), ends, limit, spec.hints)


def _for_engine(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose template needs no settings: `never` leaves none, and the others begin it."""
    given = getattr(tokenizer, "chat_template", None)  # a model of random weights has ids alone
    if given is None or (spec.chat_template != "never" and not spec.chat_kwargs):
        return tokenizer
    own, variables = copy.copy(tokenizer), dict(spec.chat_kwargs)
    chosen = variables.pop("chat_template", None)
    if isinstance(given, dict):  # several, by name
        given = given.get(chosen or "default", chosen)
    elif chosen is not None:
        given = chosen
    settings = "".join(f"{{% set {name} = {value!r} %}}" for name, value in variables.items() if name.isidentifier())
    own.chat_template = None if spec.chat_template == "never" else f"{settings}{given}"
    return own


def described(model: object) -> dict[str, object]:
    """Return the name and the hints of a model that `load` returned; {} for any other object.

    A method's YAML refers to these two, so that a method loaded for the model has its defaults.
    """
    key = model.model if isinstance(model, Loaded) else model
    try:
        spec = _SPECS.get(key)  # type: ignore[call-overload]
    except TypeError:  # not even a class of Python's, which can be a key there
        return {}
    return {} if spec is None else {"name": spec.name, "hints": spec.hints}


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone. Raises ValueError as `load` does, and for a model that has none."""
    spec.check_answers()
    tokenizer = spec.source.tokenizer()
    _check_vocabulary(spec, checked_config(spec), tokenizer)
    return tokenizer


def checked_config(spec: ModelSpec) -> PreTrainedConfig:
    """Return the model's config. Loads no weights.

    Raises:
        ValueError: config.json is out of reach or damaged, or describes layers that kvbench cannot compress.
    """
    config = spec.source.config()
    try:
        layers.check(config)
    except ValueError as error:
        raise ValueError(f"{spec.setting}: {error}") from None
    return config


def max_length(spec: ModelSpec) -> int | None:
    """Return the longest prompt with its answer in tokens: model.max_length, else what the model's config says.

    Raises:
        ValueError: model.max_length is beyond what the model can do at all, or its config cannot be used.
    """
    return _length(spec, checked_config(spec))


def end_ids(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> EndIds:
    """Return the ids that may end an answer, without loading weights."""
    return _end_ids(spec.source.generation_config(), tokenizer)


def decoding_of(spec: ModelSpec) -> dict[str, object]:
    """Return how answers are decoded, for the identity: the rule, and what the generation config asks for in vain."""
    return {"rule": decoding.RULE, "ignored": decoding.ignored(spec.source.generation_config())}


def device(spec: ModelSpec) -> str:
    """Return where `load` will put the model: cpu, cuda or cuda:N. Raises ValueError for a GPU that is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if spec.device == "auto":
        return "cuda" if count else "cpu"
    if spec.device.startswith("cuda") and int(spec.device.partition(":")[2] or 0) >= count:
        raise ValueError(f"model.device={spec.device}: torch sees {count} GPUs here; use model.device=cpu or auto")
    return spec.device


def _say_ignored(spec: ModelSpec, ignored: Mapping[str, object]) -> None:
    if ignored:
        shown = ", ".join(f"{key}={value}" for key, value in ignored.items())
        log.info("%s: decoded greedily; these settings of its generation config are not used: %s", spec.label, shown)


def _length(spec: ModelSpec, config: PreTrainedConfig) -> int | None:
    own: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    window = layers.window_limit(config)
    limits = [(window, "no layer looks back further")] if window is not None else []
    if own is not None and layers.has_learned_positions(config):
        limits.append((own, "it has learned positions, and no more of them"))
    wanted = spec.max_length
    for most, reason in limits:
        if wanted is not None and wanted > most:
            raise ValueError(f"model.max_length={wanted}: {spec.label} takes at most {most} tokens, {reason}")
    lengths = [wanted if wanted is not None else own, *(most for most, _ in limits)]
    return min((length for length in lengths if length is not None), default=None)


def _check_vocabulary(spec: ModelSpec, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer has tokens that the model has no embedding for, except one for padding."""
    if not spec.source.answers:
        return
    size = max(layers.sizes(config, "vocab_size"), default=0)
    beyond = sorted(token for token, i in tokenizer.get_vocab().items() if i >= size and i != tokenizer.pad_token_id)
    if size and beyond:
        raise ValueError(
            f"{spec.setting}: config.json says vocab_size={size}, and the tokenizer has {len(beyond)} token(s) beyond "
            f"it, such as {beyond[0]!r}; use the tokenizer files of this checkpoint"
        )


def _end_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> EndIds:
    # Llama-3 lists several ends in its generation config and only one of them in its tokenizer
    eos = None if generation is None else generation.eos_token_id
    own = _id_set([tokenizer.eos_token_id])
    declared = _id_set(eos if isinstance(eos, Iterable) else [eos])
    return EndIds(declared | own, declared or own, own)


def _id_set(ids: Iterable[int | None]) -> frozenset[int]:
    return frozenset(int(i) for i in ids if i is not None)
