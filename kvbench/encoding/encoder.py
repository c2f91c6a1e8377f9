"""Text to token ids, where control tokens come from templates only and never from user or dataset text.

A tokenizer turns the characters `<|im_end|>` into a control token wherever they stand, also inside a
haystack. The rule here: in a copy of the tokenizer every special token is renamed to a private spelling.
Template text is written in that spelling (`template`), other text is left as it is, and the whole is encoded
in one go. So a special string in user text has no meaning for the copy and is encoded as the ordinary
characters it is made of, while everything else (merges across the seam of template and text, spaces after
special tokens) is exactly the tokenizer's own behaviour. Added tokens that are not marked special (`<think>`
of Qwen3, runs of spaces) stay as they are: they are text.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Sequence
from typing import Any

MARK = "\U0010fffd"  # the last private-use character: stands around the private names


class Encoder:
    """The renamed copy of one tokenizer. `encoder` builds it and keeps it."""

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"model.path: {type(tokenizer).__name__} is not a fast tokenizer; use one with tokenizer.json"
            )
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec.update(post_processor=None, truncation=None, padding=None)  # no BOS added, offsets untrimmed
        self.specials: dict[str, int] = {}
        originals: dict[str, int] = {}
        for token in spec["added_tokens"]:
            if token["special"]:
                self.specials[token["content"]] = token["id"]
                token["content"] = _private(token["id"])
            originals[token["content"]] = token["id"]
        # tokenizers match the leftmost special token, and the longest at one place; so does an ordered alternation
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._start = _backend(spec, originals)
        inner = spec | {part: _unprefixed(spec[part]) for part in ("normalizer", "pre_tokenizer")}
        self._inner = self._start if inner == spec else _backend(inner, originals)
        # an unknown character may become <unk>; no other control token may come from plain text
        self._controls = set(self.specials.values()) - {tokenizer.unk_token_id}

    def template(self, text: str) -> str:
        """Return template text with its special tokens in private spelling."""
        return self._special.sub(lambda match: _private(self.specials[match[0]]), text)

    def visible(self, text: str) -> str:
        """Return the text with special tokens in their own spelling: the inverse of `template`."""
        names = {_private(i): token for token, i in self.specials.items()}
        return re.sub(f"{MARK}\\d+{MARK}", lambda match: names[match[0]], text)

    def leading_specials(self, text: str) -> list[int]:
        """Return the ids of the special tokens at the beginning of a text; white space between them is ignored."""
        ids: list[int] = []
        text = text.lstrip()
        while match := self._special.match(text):
            ids.append(self.specials[match[0]])
            text = text[match.end() :].lstrip()
        return ids

    def encode(self, text: str, *, inner: bool = False) -> tuple[list[int], list[int]]:
        """Return ids of `text` and, for each, the place in `text` where it ends. No BOS or EOS is added.

        inner: `text` continues text that was encoded before, so no space is put before its first word, as some
        SentencePiece-style tokenizers do at the start of a text.
        """
        if inner:
            cut = text.find(MARK)
            head = text if cut < 0 else text[:cut]
            ids, ends = self._run(self._inner, head)
            rest_ids, rest_ends = self._run(self._start, text[len(head) :])
            return ids + rest_ids, ends + [len(head) + end for end in rest_ends]
        return self._run(self._start, text)

    def _run(self, backend: tuple[Any, dict[int, int]], text: str) -> tuple[list[int], list[int]]:
        tokenizer, renumber = backend
        encoding = tokenizer.encode(text, add_special_tokens=False)
        for i in encoding.ids:
            if i in self._controls and i not in renumber:
                raise ValueError(f"model.path: this tokenizer makes the control token {i} out of plain text")
        return [renumber.get(i, i) for i in encoding.ids], [end for _, end in encoding.offsets]


def encoder(tokenizer: Any) -> Encoder:
    """Return the Encoder of a tokenizer, built once per tokenizer object. Raises ValueError for a slow tokenizer."""
    if tokenizer not in _encoders:
        _encoders[tokenizer] = Encoder(tokenizer)
    return _encoders[tokenizer]


_encoders: weakref.WeakKeyDictionary[Any, Encoder] = weakref.WeakKeyDictionary()


def _private(token_id: int) -> str:
    return f"{MARK}{token_id}{MARK}"


def _backend(spec: dict[str, Any], originals: dict[str, int]) -> tuple[Any, dict[int, int]]:
    """Return a tokenizer from its description, and {new id: original id} of added tokens: renaming may renumber."""
    from tokenizers import Tokenizer

    renamed = Tokenizer.from_str(json.dumps(spec))
    ids_by_content = {token.content: new for new, token in renamed.get_added_tokens_decoder().items()}
    return renamed, {ids_by_content[content]: i for content, i in originals.items()}


def _unprefixed(node: Any) -> Any:
    """Return a normaliser or pre-tokeniser without the step that puts a space before the first word."""
    if not isinstance(node, dict):
        return node
    if node["type"] == "Prepend":
        return None
    changed = dict(node)
    for key in ("normalizers", "pretokenizers"):
        if key in changed:
            changed[key] = _present(_unprefixed(part) for part in changed[key])
    if "prepend_scheme" in changed:
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    return changed


def _present(parts: Any) -> Sequence[Any]:
    return [part for part in parts if part is not None]
