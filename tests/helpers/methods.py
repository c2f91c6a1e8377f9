"""The methods of conf/method/ by what they have, and methods with some of their parts exchanged.

A YAML may have a block `test: {dials: {...}, budget: ...}`: settings that suit small prompts, or that have no default.
In the place of a dial, `LAYER-HEAD` stands for a table of scores for the heads of the model in use, and `DROP-RATIOS`
for a table of drop ratios for its layers.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kvbench
from kvbench.common.paths import conf_dir
from kvbench.config import options
from kvbench.methods.method import Method
from kvbench.methods.read import compose

TINY_LAYERS, TINY_HEADS = 4, 4  # of conf/model/tiny.yaml
TABLE, RATIOS = "LAYER-HEAD", "DROP-RATIOS"


def test_dials(name: str, layers: int = TINY_LAYERS, query_heads: int = TINY_HEADS) -> dict[str, Any]:
    """Return the dials of a YAML's block `test`, for a model of this shape."""
    dials = compose(conf_dir() / "method", name).test.get("dials", {})
    files = {TABLE: lambda: head_table(layers, query_heads), RATIOS: lambda: ratio_table(layers)}
    return {dial: files[value]() if value in files else value for dial, value in dials.items()}


def test_overrides(name: str, layers: int = TINY_LAYERS, query_heads: int = TINY_HEADS) -> list[str]:
    """Return the dials of a YAML's block `test` as words of a command, for a model of this shape."""
    return [f"method.{dial}={value}" for dial, value in test_dials(name, layers, query_heads).items()]


test_dials.__test__ = test_overrides.__test__ = False  # type: ignore[attr-defined]


def load(name: str, layers: int = TINY_LAYERS, query_heads: int = TINY_HEADS, **dials: Any) -> Method:
    """Return a method for a model of this shape; `dials` come before those of its block `test`."""
    return kvbench.load_method(name, **(test_dials(name, layers, query_heads) | dials))


@cache
def shipped() -> dict[str, Method]:
    """Return {name: method} of every YAML in conf/method/, so that a new one is in all tests without registration."""
    return {name: load(name) for name in sorted(options("method"))}


def evicting() -> list[str]:
    """Return the names of the methods that keep as many tokens as a budget says."""
    return [name for name, method in shipped().items() if method.promises == "kept"]


def measured() -> list[str]:
    """Return the names of the methods that drop tokens, and decide by themselves how many."""
    return [name for name, method in shipped().items() if method.evicts and method.promises is None]


def with_dial(dial: str) -> list[str]:
    """Return the names of the methods that have a dial of this name."""
    return [name for name, method in shipped().items() if dial in method.dials]


def budget_for(method: Method, budget: int | float | None) -> int | float | None:
    """Return the budget, or None for a method that takes none."""
    return None if method.promises is None else budget


def with_parts(method: Method, **parts: Any) -> Method:
    """Return an evicting method with other parts in the place of its own, e.g. `select=...`."""
    assert method.eviction is not None
    return replace(method, eviction=replace(method.eviction, **parts))


@cache
def head_table(layers: int, query_heads: int, seed: int = 0) -> str:
    """Return the path of a table of head scores, in which some heads score 0."""
    draw = random.Random(f"{layers} {query_heads} {seed}")
    scores = {
        f"{layer}-{head}": [draw.choice([0, draw.random(), 3 * draw.random()]) for _ in range(draw.randrange(1, 4))]
        for layer in range(layers)
        for head in range(query_heads)
    }
    scores["0-0"].append(1.0)  # some score must be positive
    file = Path(tempfile.mkdtemp()) / f"{layers}x{query_heads}.json"
    file.write_text(json.dumps(scores))
    return str(file)


@cache
def ratio_table(layers: int, seed: int = 0) -> str:
    """Return the path of a table of drop ratios, whose mean over the layers is the share that leaves."""
    draw = random.Random(f"{layers} {seed}")
    table = {}
    for share in (0.1, 0.3, 0.5, 0.8):
        offsets = [draw.uniform(-0.1, 0.1) for _ in range(layers)]
        mean = sum(offsets) / layers
        table[str(share)] = [min(1.0, max(0.0, share + offset - mean)) for offset in offsets]
    file = Path(tempfile.mkdtemp()) / f"{layers}.json"
    file.write_text(json.dumps(table))
    return str(file)


@dataclass(frozen=True)
class DrawnView:
    """A view of a model that does not exist: drawn projections, a rotation of channel pairs, letters as tokens."""

    query_heads: int
    dim: int
    hidden: int = 24

    def o_proj(self, layer: int) -> Tensor:
        """Return drawn weights [H, D, E]."""
        g = torch.Generator().manual_seed(layer)
        return torch.randn(self.query_heads, self.dim, self.hidden, generator=g, dtype=torch.float64)

    def rotate(self, x: Tensor, by: Tensor) -> Tensor:
        """Return x with channels i and i + D / 2 rotated by `by` * 0.5 ** i."""
        half = x.shape[-1] // 2
        angle = by[..., None] * 0.5 ** torch.arange(half)
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        turned = [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest]
        return torch.cat(turned, -1).to(x.dtype)

    def encode(self, text: str) -> list[int]:
        """Return the letters' code points."""
        return [ord(letter) % 256 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the letters with these code points."""
        return "".join(chr(i) for i in ids)

    def answer_prefix(self) -> list[int]:
        """Return one token."""
        return [3]

    def ids(self, kind: str) -> Tensor:
        """Return a few ids that depend on the kind."""
        return torch.arange(len(kind) % 3 + 1)


def facts(method: Method, q_HTD: Tensor, k_UTD: Tensor) -> dict[str, Any]:
    """Return what `Method.keep` must be given for a method, apart from queries, keys and values."""
    heads, tokens, dim = q_HTD.shape[-3:]
    g = torch.Generator().manual_seed(0)
    known: dict[str, Any] = {
        "model": DrawnView(heads, dim),
        "token_ids": torch.randint(0, 256, (tokens,), generator=g),
        "spans": {"context": (0, tokens), "question": (tokens, tokens)},
        "hidden": torch.randn(tokens, 24, generator=g),
        "task": "localization",
        "probed": {method.probe: torch.rand(k_UTD.shape[-3:-1], generator=g)},
    }
    return {name: known[name] for name in method.needs}
