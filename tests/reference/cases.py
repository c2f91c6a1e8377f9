"""Random prompts and settings for the parity tests, drawn from a seed.

Legend: H query heads, U KV heads, T tokens, D channels, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.helpers.methods import facts

from . import scores


@dataclass(frozen=True)
class Case:
    """One random prompt of several layers with the settings of the window family."""

    layers: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    tokens: int
    heads: int
    window: int
    budget: int
    dials: dict[str, Any]
    scaling: float | None
    dtype: str

    @property
    def base(self) -> int:
        """Tokens selected in addition to the window."""
        return self.budget - self.window

    def torch_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q, k, v of a layer as the method receives them."""
        q, k, v = (torch.tensor(x, dtype=getattr(torch, self.dtype)) for x in self.layers[layer])
        return q, k, v

    def window_scores(self, layer: int) -> np.ndarray:
        """Return naive window scores [U, T - window] of a layer."""
        q, k, _ = self.layers[layer]
        d = self.dials
        return scores.window_scores(
            q, k, self.window, d["kernel_size"], d["pooling"], d["reduce"], scaling=self.scaling
        )

    def column_sums(self, layer: int) -> np.ndarray:
        """Return naive column sums [U, T] of a layer."""
        q, k, _ = self.layers[layer]
        return scores.column_sums(q, k, self.dials["reduce"], scaling=self.scaling)

    def keep(self, method: Any, budget: int | float | None = None) -> list[list[torch.Tensor]]:
        """Return the kept tokens of every layer and KV head."""
        layers = [self.torch_layer(layer) for layer in range(len(self.layers))]
        budget = self.budget if budget is None else budget
        given = facts(method, *layers[0][:2])
        return list(method.keep_layers(layers, budget=budget, scaling=self.scaling, **given))


def draw(seed: int, num_layers: int = 1, dtype: str = "float64", max_tokens: int = 120) -> Case:
    """Draw a prompt longer than its budget; every seventh one may have three times `max_tokens`."""
    rng = np.random.default_rng([seed, num_layers, dtype == "float32"])
    heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    dim = int(rng.choice([4, 7, 16, 32]))
    window = int(rng.integers(1, 13))
    tokens = int(rng.integers(window + 3, max_tokens * (3 if seed % 7 == 0 else 1) + 1))
    budgets = [int(rng.integers(window + 1, tokens)), window + 1, tokens - 1]
    budget = budgets[int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
    layers = []
    for _ in range(num_layers):
        shapes = [(heads * group, tokens, dim), (heads, tokens, dim), (heads, tokens, dim)]
        # float32 values are exact in float64, so both sides see the same prompt.
        layers.append(tuple(rng.normal(size=s).astype(np.float32).astype(np.float64) for s in shapes))
    dials = {
        "kernel_size": int(rng.choice([1, 3, 5, 7, 21])),
        "pooling": str(rng.choice(["avg", "max", "none"])),
        "reduce": str(rng.choice(["mean", "max", "sum"])),
    }
    if dials["pooling"] == "none":
        dials["kernel_size"] = 7  # the default: another one, which nothing would read, is refused
    scaling = None if rng.random() < 0.7 else float(rng.uniform(0.05, 1.0))
    return Case(layers, tokens, heads, window, budget, dials, scaling, dtype)  # type: ignore[arg-type]
