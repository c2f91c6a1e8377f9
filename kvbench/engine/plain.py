"""`kvbench.compressed`: plain transformers code on a compressed cache.

    with kvbench.compressed(model, "snapkv", budget=128):
        model.generate(**inputs)

Forward hooks of the model, removed on exit, give our attention to the layers and replace the empty cache that
`generate` makes. The new cache stores no tokens itself. It counts the tokens seen, which positions need; our caches
hold the kept tokens.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.cache.base import KVCache
from kvbench.engine.attention import AttentionPass, kvbench_attention
from kvbench.engine.caches import ContinuePass, LayerCaches, Place, make_cache
from kvbench.engine.feed import FeedPass
from kvbench.engine.limits import RequestLimits, check_methods
from kvbench.engine.prefill import PrefillPass
from kvbench.engine.probe import checked_plan
from kvbench.engine.requests import pass_error
from kvbench.engine.rope import forget_lengths
from kvbench.engine.start import prepare, start_feed, start_prefill
from kvbench.engine.variant import Variant

_RESERVE = 64  # `generate` does not say how many tokens will come; beyond this the cache grows by half its length
_CACHE_KEYWORDS = ("cache", "past_key_values")  # transformers 5.24 renamed the second to the first

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _SeenLayer(CacheLayerMixin):
    """A layer that counts tokens and passes keys and values on to the attention function.

    Attributes:
        seen: tokens of the prompt and after it.
        is_called: a call of the model inside the block is running; otherwise no attention of ours would read the cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.is_called = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_called:
            raise ValueError("a cache of kvbench.compressed works in calls of its model inside the block alone")
        self.seen += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class CompressedCache(Cache):
    """The cache that `generate` holds; `kv` stores the kept keys and values.

    Tokens cannot be taken back once they are compressed, so beam search and assisted decoding are refused.

    Attributes:
        prompt_T: ids of the prompt.
        is_answering: a token has followed the prompt.
    """

    def __init__(self, caches: LayerCaches, prompt_T: Tensor) -> None:
        self.prompt_T, self.is_answering = prompt_T, False
        self._seen = [_SeenLayer() for _ in range(len(caches.plan.full) + len(caches.plan.local))]
        super().__init__(layers=[*self._seen])
        self.caches = caches

    @property
    def kv(self) -> KVCache:
        """The compressed cache."""
        return self.caches.kv

    @property
    def kept(self) -> list[list[int]]:
        """Stored tokens per compressed layer and KV head."""
        return self.kv.lengths(0)

    def called(self, is_called: bool) -> None:
        """Let the model's layers use the cache, or no longer."""
        for layer in self._seen:
            layer.is_called = is_called

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise ValueError("a cache of kvbench.compressed cannot be copied; give kvbench.generate all questions at once")

    def crop(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise ValueError: assisted and prompt-lookup decoding take tokens back."""
        raise ValueError(
            "kvbench.compressed cannot take tokens back, as assisted and prompt-lookup decoding do; "
            "generate without assistant_model and prompt_lookup_num_tokens"
        )

    def _no_beams(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise ValueError: beams copy rows."""
        raise ValueError("kvbench.compressed generates one sequence; use num_beams=1 and num_return_sequences=1")

    reorder_cache = batch_repeat_interleave = batch_select_indices = _no_beams


class Compressed:
    """The handle of a `compressed` block.

    Attributes:
        cache: the cache of the latest prompt; None before the first.
        calls: forward calls of the model inside the block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        variant: Variant,
        cache: str,
        kernel: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._model, self._variant, self._kind, self._kernel = model, variant, cache, kernel
        self._tokenizer = tokenizer
        self._prefill: PrefillPass | FeedPass | None = None
        self._plan = checked_plan(model)
        check_methods(self._plan, [variant.method])
        variant.method.check_open_ended()  # the caller alone knows how many tokens will follow
        self._limits = RequestLimits(model, self._plan, max_length=sys.maxsize)  # transformers warns by itself
        self._keyword = _cache_keyword(model)
        parameters = inspect.signature(model.forward).parameters.values()
        self._places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]  # arguments may come unnamed
        self._num_layers = model.config.get_text_config().num_hidden_layers
        self._replaced: WeakKeyDictionary[Cache, CompressedCache] = WeakKeyDictionary()  # callers' caches → ours
        self._attention: AttentionPass | None = None
        self._expected = 0
        self.cache: CompressedCache | None = None
        self.calls = 0

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Give a new prompt a new cache, and continue a running one."""
        if kwargs.get("kvbench") is not None:  # a pass of the method's own
            return args, kwargs
        self.calls += 1
        kwargs, args = {**dict(zip(self._places, args, strict=False)), **kwargs}, args[len(self._places) :]
        self._check_layers()
        ids_BT = kwargs["input_ids"] if kwargs.get("input_ids") is not None else next(iter(args), None)
        if ids_BT is None or kwargs.get("use_cache") is False:
            raise ValueError("kvbench.compressed needs input_ids and use_cache=True")
        mask = kwargs.get("attention_mask")
        if ids_BT.shape[0] != 1 or (isinstance(mask, Tensor) and not bool(mask.all())):
            raise ValueError(
                "kvbench.compressed takes one unpadded sequence at a time; use kvbench.generate for batches"
            )
        given = [cache for name in _CACHE_KEYWORDS if (cache := kwargs.pop(name, None)) is not None]
        past = given[0] if given else None
        if past is not None and not isinstance(past, Cache):
            raise ValueError(
                f"kvbench.compressed: past_key_values is a {type(past).__name__}; give a cache of transformers, or none"
            )
        own = past if past is None or isinstance(past, CompressedCache) else self._replaced.get(past)
        seen = 0 if own is None else own.get_seq_length()
        _check_positions(kwargs.get("position_ids"), seen, ids_BT.shape[1])
        if own is not None:
            self.cache, attention = own, self._continue(own, ids_BT)
        elif past is not None and past.get_seq_length() > 0:
            raise ValueError("kvbench.compressed cannot take over a cache that already holds tokens")
        else:
            self.cache, attention = self._start(ids_BT)
            if past is not None:
                self._replaced[past] = self.cache
        self._attention = attention
        self.cache.called(True)
        attention.begin(ids_BT)
        return args, {**kwargs, self._keyword: self.cache, "kvbench": attention}

    def after_forward(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        """Check that the model used our attention and our cache."""
        assert self._attention is not None and self.cache is not None
        if kwargs.get("kvbench") is not self._attention:
            return
        self._attention.finish()
        self.cache.called(False)
        if self.cache.get_seq_length() != self._expected:
            raise ValueError(
                f"kvbench.compressed: {type(self._model).__name__} of transformers {transformers.__version__} did not "
                "use the cache it was given, so nothing would be compressed; use kvbench.generate"
            )

    def _start(self, ids_BT: Tensor) -> tuple[CompressedCache, AttentionPass]:
        self._expected = ids_BT.shape[1]
        generation = getattr(self._model, "generation_config", None)
        chunk = getattr(generation, "prefill_chunk_size", None)
        if chunk is not None:  # of a prompt with one token more than its pieces, the last looks like an answer
            raise ValueError(
                f"kvbench.compressed: model.generation_config.prefill_chunk_size={chunk} cuts prompts into pieces; set "
                "it to None"
            )
        if self._expected == 1 and self._variant.budget is not None:
            is_beside_another = self.cache is not None and not self.cache.is_answering
            raise ValueError(
                "kvbench.compressed compresses a prompt after the first call, and this one has a single token; "
                + (
                    "guidance_scale without negative_prompt_ids makes such a prompt, so give them, or no guidance_scale"
                    if is_beside_another
                    else "give the whole prompt in one call, without prefill_chunk_size"
                )
            )
        self._refuse(self._limits.length_error(self._expected, 0))
        self._refuse(self._dropped(ids_BT[0]))
        ids = ids_BT[0].tolist()
        self._refuse(pass_error(self._variant, ids, self._limits, self._model, self._tokenizer))
        forget_lengths(self._model)
        cache = CompressedCache(LayerCaches(self._plan, make_cache(self._model, self._kind, self._kernel)), ids_BT[0])
        place = Place(0, _RESERVE)
        if self._variant.method.feed is not None:
            self._prefill = start_feed(
                self._model, self._tokenizer, [self._variant], cache.caches, places=[[place]], token_ids=ids_BT[0]
            )
        else:
            self._prefill = start_prefill(
                self._model,
                self._tokenizer,
                [self._variant],
                cache.caches,
                places=[[place]],
                token_ids=ids_BT[0],
            )
        return cache, self._prefill

    def close(self) -> None:
        """Remove what a failed call may have left on the model and on the cache."""
        if self.cache is not None:
            self.cache.called(False)
        if self._prefill is not None:
            self._prefill.close()

    def _check_layers(self) -> None:
        """Raise ValueError if the model leaves out layers, as self-speculative decoding lets it do."""
        config = self._model.config.get_text_config()
        if config.num_hidden_layers != self._num_layers:
            config.num_hidden_layers = self._num_layers  # transformers would leave it so after an error
            raise ValueError(
                "kvbench.compressed compresses all layers, and self-speculative decoding leaves some out; generate "
                "without assistant_early_exit"
            )

    def _continue(self, cache: CompressedCache, ids_BT: Tensor) -> AttentionPass:
        self._expected = cache.get_seq_length() + ids_BT.shape[1]
        self._refuse(self._length_error(cache, self._expected))
        if ids_BT.shape[1] > 1 and not cache.is_answering:
            raise ValueError(
                "kvbench.compressed compresses a prompt after the first call, and the second one has "
                f"{ids_BT.shape[1]} more tokens of it; give the whole prompt in one call, without prefill_chunk_size"
            )
        cache.is_answering = True
        return ContinuePass(cache.caches, [0], ids_BT.tolist())

    def _dropped(self, ids_T: Tensor) -> str | None:
        """Return why a new prompt is not one; None if it is.

        Where the frequencies of LongRoPE change, `generate` of Phi-3 drops its cache and reads the text again as one
        prompt: that of the last call with its answer.
        """
        before = self.cache
        if before is None or before.get_seq_length() + 1 != len(ids_T):
            return None
        is_same = torch.equal(ids_T[: len(before.prompt_T)], before.prompt_T)
        return self._length_error(before, len(ids_T)) if is_same else None

    def _length_error(self, cache: CompressedCache, tokens: int) -> str | None:
        """Return why the prompt of a cache cannot grow to this many tokens; None if it can."""
        prompt = len(cache.prompt_T)
        return self._limits.length_error(prompt, tokens - prompt + 1)

    @staticmethod
    def _refuse(error: str | None) -> None:
        if error is not None:
            raise ValueError(error)


@contextmanager
def compressed(
    model: PreTrainedModel,
    variant: Variant,
    *,
    cache: str = "ragged",
    kernel: str = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[Compressed]:
    """Run a block in which `model(...)` and `model.generate(...)` compress each prompt once.

    Raises:
        ValueError: the engine cannot run the model, or the block never called it.
    """
    handle = Compressed(model, variant, cache, kernel, tokenizer)
    prepare(model, tokenizer, [variant])  # the hooks would take its forward call for the caller's
    hooks = [
        model.register_forward_pre_hook(handle.before_forward, with_kwargs=True),
        model.register_forward_hook(handle.after_forward, with_kwargs=True),
    ]
    try:
        with kvbench_attention(model), torch.no_grad():
            yield handle
    finally:
        handle.close()
        for hook in hooks:
            hook.remove()
        forget_lengths(model)
    if handle.calls == 0:
        raise ValueError(
            "kvbench.compressed: the block did not call the model it was given, so nothing was compressed; call that "
            "model inside the block"
        )


def _check_positions(position_BT: object, seen: int, tokens: int) -> None:
    """Raise ValueError for a call whose tokens do not follow those of its cache, one by one."""
    if not isinstance(position_BT, Tensor):
        return
    first = int(position_BT.flatten()[0])
    if first != seen:
        raise ValueError(
            f"kvbench.compressed: the call begins at position {first} and its cache holds {seen} tokens; each generate "
            "call is a new prompt, so call generate without past_key_values"
        )
    if position_BT.shape[-1] != tokens or (tokens > 1 and bool((position_BT.diff(dim=-1) != 1).any())):
        raise ValueError(
            "kvbench.compressed takes one sequence at a time, and position_ids do not count up by one, as if several "
            "were packed into a row; leave them out"
        )


def _cache_keyword(model: PreTrainedModel) -> str:
    """Return the keyword by which a model takes its cache."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_KEYWORDS if name in parameters), _CACHE_KEYWORDS[-1])
