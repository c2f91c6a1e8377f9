"""One prompt under one method: the prefill, and the files that show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from kvbench import models
from kvbench.common.files import write_atomic
from kvbench.engine.observe import compressed_layers, observe
from kvbench.methods.load import method_identity
from kvbench.profile.inspect_figure import draw_kept, draw_layer
from kvbench.profile.inspect_text import Inspected, content, head_rows, layer_rows, layer_table, legend
from kvbench.prompts.choose import chosen_prompt, text_prompt
from kvbench.prompts.seeds import check_seed
from kvbench.report.formats import csv_text
from kvbench.run.jobs import build_benchmark, variant_of
from kvbench.store.identity import identity_hash


def inspect_prompt(cfg: DictConfig, text: str | None, show: int | str, layers: list[int] | str | None) -> Inspected:
    """Prefill a prompt, write the files, and return what they show.

    Args:
        text: the prompt; None for one of the benchmark.
        show: of the benchmark, the number or the id of the prompt.
        layers: the layers to draw; None for the first, the middle and the last, "all" for all.

    Raises:
        ValueError: one line naming the override to change.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    spec = models.ModelSpec.from_node(plain["model"])
    variant = variant_of(cfg)
    if plain["threads"]:
        torch.set_num_threads(plain["threads"])
    tokenizer = models.load_tokenizer(spec)
    benchmark = build_benchmark(cfg.benchmark) if text is None else None
    check_seed(cfg, benchmark, variant.method.draws)
    chosen = chosen_prompt(spec, tokenizer, benchmark, show) if benchmark else text_prompt(spec, tokenizer, text or "")
    ids = list(chosen.prompt.ids[: chosen.span])
    variant.method.tokens(variant.budget, len(ids))  # an impossible budget is refused before weights load
    most = models.shape(spec).layers
    if isinstance(layers, list) and layers and layers[-1] >= most:
        raise ValueError(f"layers={layers[-1]}: {spec.label} has layers 0 to {most - 1}")
    loaded = models.load(spec)
    seen = observe(
        loaded.model,
        loaded.engine_tokenizer,
        chosen.prompt,
        chosen.span,
        variant,
        seed=plain["seed"],
        maps=_drawn(compressed_layers(loaded.model), layers),
    )
    identity = {
        "model": spec.identity(), "dtype": spec.dtype, "method": method_identity(cfg.method, variant.method),
        "budget": str(variant.budget), "ids": ids, "seed": plain["seed"],
    }  # fmt: skip
    name = f"{spec.label.rpartition('/')[2]}-{str(variant).replace('/', '-')}-{identity_hash(identity)[:8]}"
    words = [str(tokenizer.decode([i])) for i in ids]
    folder = Path(plain["paths"]["outputs"]).absolute() / "inspect" / name
    inspected = Inspected(f"{spec.label}, {variant}", chosen.name, words, seen, folder)
    _write(inspected)
    return inspected


def _drawn(compressed: Sequence[int], layers: list[int] | str | None) -> list[int]:
    """Return the layers to draw."""
    if layers is None:
        return sorted({compressed[0], compressed[len(compressed) // 2], compressed[-1]})
    return list(compressed) if isinstance(layers, str) else layers


def _write(seen: Inspected) -> None:
    """Write the tables and figures."""
    folder = seen.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "layers.md", f"## {seen.heading}\n\n{layer_table(seen)}\n\n{legend(seen)}\n")
    write_atomic(folder / "layers.csv", csv_text(layer_rows(seen)))
    write_atomic(folder / "layers.json", json.dumps(content(seen), indent=2) + "\n")
    write_atomic(folder / "heads.csv", csv_text(head_rows(seen)))
    draw_kept(seen, folder)
    for layer in seen.layers:
        if layer.attention_HPP is not None:
            draw_layer(seen, layer, folder / f"attention_layer{layer.layer:02d}")
