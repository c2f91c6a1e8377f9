"""The tables of an inspected prompt: memory per layer, and the policy of each head."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.engine.observe import ObservedLayer
from kvbench.report.formats import csv_text, markdown
from kvbench.report.latex import NEEDS, latex, latex_comment

_MIB = 2**20


@dataclass(frozen=True)
class Inspected:
    """A prompt under a method.

    Attributes:
        title: model and method.
        prompt: the name of the prompt.
        words: the text of each token.
        folder: where the files are.
    """

    title: str
    prompt: str
    words: Sequence[str]
    layers: Sequence[ObservedLayer]
    folder: Path

    @property
    def heading(self) -> str:
        """The first line of every output."""
        return f"{self.title}: {self.prompt}, {len(self.words)} tokens"

    @property
    def policies(self) -> list[str]:
        """The names of the policies in use, those that keep fewest tokens first; empty for a method without any."""
        kept: dict[str, list[int]] = {}
        for layer in self.layers:
            for name, tokens in zip(layer.policies or (), layer.kept_UT.sum(1).tolist(), strict=False):
                kept.setdefault(name, []).append(tokens)
        return sorted(kept, key=lambda name: (name.count("+") if name != "full" else 99, name))


def layer_rows(seen: Inspected) -> list[dict[str, Any]]:
    """Return a row for each layer and one for the mean: MiB before and after, saved share, tokens, heads per policy."""
    rows = []
    for layer in seen.layers:
        counts = Counter(layer.policies or ())
        rows.append(
            {
                "layer": layer.layer,
                "full_mib": layer.full_bytes / _MIB,
                "kept_mib": layer.bytes / _MIB,
                "saved_percent": 100 * (1 - layer.bytes / layer.full_bytes),
                "tokens_per_head": layer.kept_UT.sum().item() / len(layer.kept_UT),
                **{name: counts[name] for name in seen.policies},
            }
        )
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "layer"}
    full, kept = (sum(getattr(layer, name) for layer in seen.layers) for name in ("full_bytes", "bytes"))
    return [{"layer": "mean", **mean, "saved_percent": 100 * (1 - kept / full)}, *rows]


def head_rows(seen: Inspected) -> list[dict[str, Any]]:
    """Return a row for each KV head: its policy, how many tokens it stores, and their positions."""
    return [
        {
            "layer": layer.layer,
            "kv_head": head,
            "policy": "" if layer.policies is None else layer.policies[head],
            "tokens": len(seen.words),
            "kept": int(kept_T.sum()),
            "positions": " ".join(map(str, kept_T.nonzero().flatten().tolist())),
        }
        for layer in seen.layers
        for head, kept_T in enumerate(layer.kept_UT)
    ]


def short(policy: str) -> str:
    """Return a policy in a few letters: the initials of its parts, or its only part in full."""
    return "".join(part[0].upper() for part in policy.split("+")) if "+" in policy else policy


def layer_table(seen: Inspected) -> str:
    """Return the table of memory per layer as Markdown."""
    return markdown(_layer_cells(seen), narrow=True)


def _layer_cells(seen: Inspected) -> list[dict[str, str]]:
    cells = []
    for row in layer_rows(seen):
        form = ".1f" if row["layer"] == "mean" else "d"
        counts = {short(name): f"{row[name]:{form}}" for name in seen.policies}
        cells.append(
            {
                "layer": str(row["layer"]),
                "full MiB": f"{row['full_mib']:.4f}",
                "kept MiB": f"{row['kept_mib']:.4f}",
                "saved %": f"{row['saved_percent']:.1f}",
                "tokens per head": f"{row['tokens_per_head']:.1f}",
                **counts,
            }
        )
    return cells


def head_table(seen: Inspected) -> str:
    """Return the policy and the stored tokens of every KV head as Markdown, a line for each layer."""
    rows = []
    for layer in seen.layers:
        row = {"layer": str(layer.layer)}
        for head, tokens in enumerate(layer.kept_UT.sum(1).tolist()):
            name = "" if layer.policies is None else f"{short(layer.policies[head])} "
            row[f"KV head {head}"] = f"{name}{tokens}"
        rows.append(row)
    return markdown(rows)


def legend(seen: Inspected) -> str:
    """Return what the columns mean."""
    names = [f"{short(name)}: {name}" for name in seen.policies if "+" in name]
    counts = "Columns of policies count KV heads. " if seen.policies else ""
    return f"Memory of keys and values after the prefill, per layer. {counts}{', '.join(names)}".strip()


def content(seen: Inspected) -> dict[str, Any]:
    """Return everything but the maps, for JSON."""
    return {
        "title": seen.title,
        "prompt": seen.prompt,
        "tokens": list(seen.words),
        "layers": layer_rows(seen),
        "heads": head_rows(seen),
    }


def console(seen: Inspected, form: str) -> str:
    """Return what the command prints, in one of `report.formats.FORMATS`."""
    if form == "json":
        return json.dumps(content(seen), indent=2)
    if form == "csv":
        return csv_text(layer_rows(seen)).rstrip("\n")
    if form == "latex":
        return f"{latex_comment(NEEDS)}\n{latex(_layer_cells(seen))}"
    heads = ["Tokens that each KV head stores:", head_table(seen), f"Tables and figures: {seen.folder}"]
    return "\n\n".join([f"## {seen.heading}", layer_table(seen), legend(seen), *heads])
