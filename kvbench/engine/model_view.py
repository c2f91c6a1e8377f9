"""A view of a model for the parts of a method: output projections, its own rotation, and its tokenizer.

The view reads modules and changes none. The attention modules are those that transformers hands to the attention
function.

Shape suffixes: H query heads, T tokens, D head dimension, E hidden size.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.common.suggest import did_you_mean
from kvbench.common.text import one_line
from kvbench.engine.products import is_changed
from kvbench.engine.projection import changed_inputs, projections
from kvbench.engine.rotation import Rotation, find_rotations
from kvbench.engine.survey import AttentionPlan, survey
from kvbench.methods.model_view import TOKEN_KINDS

_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # numbers that need no scale
_WORDS = "kvbenchplaceholder"  # letters only: survives trimming and is in no template
_views: WeakKeyDictionary[PreTrainedModel, EngineView] = WeakKeyDictionary()


def view_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> EngineView:
    """Return the view of a model. Its rotations are checked once per model and process, by a forward call."""
    view = _views.get(model)
    if view is None or view.tokenizer is not tokenizer or view.dtype != model.dtype:
        plan = survey(model)
        rotations = find_rotations(model, plan) if view is None else view.rotations
        changed = changed_inputs(model, plan) if view is None else view.changed
        view = _views[model] = EngineView(type(model).__name__, plan, rotations, changed, tokenizer, model.dtype)
    return view


def decoder_layers(model: PreTrainedModel, plan: AttentionPlan) -> Mapping[int, nn.Module]:
    """Return {index: decoder layer} of the layers that are compressed: the modules that hold an attention module."""
    parents = {child: module for module in model.modules() for child in module.children()}
    return {layer: parents[plan.modules[layer]] for layer in plan.full}


class EngineView:
    """The `kvbench.methods.model_view.ModelView` of a loaded model.

    Args:
        name: class of the model, for messages.
        rotations: of its keys, for each layer that is compressed; None where it is unknown.
        changed: layers of the model whose output projection takes something else than the attention's output.
        tokenizer: None where the caller gave none; questions about tokens are then refused.
        dtype: of the model's activations.
    """

    def __init__(
        self,
        name: str,
        plan: AttentionPlan,
        rotations: Sequence[Rotation | None],
        changed: Collection[int],
        tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype,
    ) -> None:
        self._name, self.rotations, self.changed = name, rotations, changed
        self.tokenizer, self.dtype = tokenizer, dtype
        self._layers = plan.full
        self._modules = [plan.modules[layer] for layer in plan.full]
        self._shape = plan.heads, plan.head_dim
        self._ids: dict[str, Tensor] = {}

    def o_proj(self, layer: int) -> Tensor:
        """Return [H, D, E]; see `ModelView`."""
        module = self._modules[layer]
        if self._layers[layer] in self.changed:
            raise ValueError(
                f"model: {type(module).__name__} of {self._name} changes the heads' outputs before it projects them, "
                "and this method reads the projection; choose another model or method"
            )
        heads, dim = self._shape
        for projection in projections(module):
            weight = _weight(projection, heads * dim, self.dtype)
            if weight is not None:
                return weight.reshape(heads, dim, -1)
        raise ValueError(
            f"model: {type(module).__name__} of {self._name} has no output projection of {heads} heads x {dim}, which "
            "this method reads; choose another model or method"
        )

    def rotate(self, x: Tensor, by: Tensor, layer: int) -> Tensor:
        """Return x [..., T, D] rotated by further positions; see `ModelView`."""
        rotation = self.rotations[layer]
        if rotation is None:
            self.check_rotations()
        assert rotation is not None
        rotated: Tensor = rotation(x, by)
        return rotated

    def check_rotations(self) -> None:
        """Raise ValueError, naming the model, if the rotation of a layer is unknown."""
        if None in self.rotations:
            raise ValueError(
                f"model: {self._name} rotates its keys in a way that kvbench does not know, and this method rotates "
                "them; choose another model or method"
            )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; see `ModelView`."""
        ids: list[int] = self._need_tokenizer().encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; see `ModelView`."""
        return str(self._need_tokenizer().decode(list(ids), clean_up_tokenization_spaces=False))

    def answer_prefix(self) -> list[int]:
        """Return the ids that the chat template puts before an answer; see `ModelView`."""
        tokenizer = self._need_tokenizer()
        if not tokenizer.chat_template:
            return []
        try:
            chat = [{"role": "user", "content": _WORDS}]
            text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program; jinja's errors have no common type
            raise ValueError(f"the model's chat template cannot be used ({one_line(str(error))})") from error
        return self.encode(text.rpartition(_WORDS)[2]) if _WORDS in text else []

    def ids(self, kind: str) -> Tensor:
        """Return the sorted ids of a kind of tokens; see `ModelView`."""
        if kind not in TOKEN_KINDS:
            raise ValueError(f"ids({kind!r}): no such kind of tokens.{did_you_mean(kind, TOKEN_KINDS)}")
        if kind not in self._ids:
            self._ids[kind] = torch.tensor(_ids_of(self._need_tokenizer(), kind), dtype=torch.long)
        return self._ids[kind]

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError("this method reads tokens; give kvbench.compressed(..., tokenizer=...)")
        return self.tokenizer


@torch.inference_mode()
def _weight(projection: nn.Module, inputs: int, dtype: torch.dtype) -> Tensor | None:
    """Return the weight of a linear module, [inputs, outputs]; None if it takes another number of inputs.

    A weight that is quantised, that a hook changes, or that lies elsewhere until it is used, is read from the module's
    outputs for unit vectors.

    Args:
        dtype: of the unit vectors.
    """
    if getattr(projection, "in_features", inputs) != inputs:
        return None
    if type(projection) is nn.Linear and not is_changed(projection):
        weight = projection.weight
        if type(weight) is nn.Parameter and not weight.is_meta and weight.dtype in _PLAIN:
            return weight.detach().T
    tensors = (*projection.parameters(), *projection.buffers())
    device = next((x.device for x in tensors if not x.is_meta), torch.device("cpu"))
    units = torch.eye(inputs, device=device, dtype=dtype)
    try:
        answers: Tensor = projection(units) - projection(torch.zeros_like(units[:1]))
    except (RuntimeError, TypeError, ValueError):
        return None
    return answers


def _ids_of(tokenizer: PreTrainedTokenizerBase, kind: str) -> list[int]:
    """Return the sorted ids of a kind of tokens.

    Special tokens are all that the tokenizer marks so: those with a role (BOS, EOS, ...), and those that only a chat
    template writes, such as <|start_header_id|>.
    """
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = marked.union(tokenizer.all_special_ids)
    if kind == "special":
        return sorted(special)
    others = sorted(set(tokenizer.get_vocab().values()) - special)
    texts = {i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in others}
    return [i for i, text in texts.items() if _is_of_kind(str(text), kind)]


def _is_of_kind(text: str, kind: str) -> bool:
    """Return True if the text of a token is of a kind; spaces around it do not matter."""
    if kind == "newline":
        return "\n" in text and not text.strip()
    inner = text.strip()
    if kind == "digit":
        return inner.isdecimal()
    return bool(inner) and all(_is_punctuation(letter) for letter in inner)


def _is_punctuation(letter: str) -> bool:
    """Return True for ASCII's marks, which include symbols such as + and $, and for the punctuation of any script."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")
