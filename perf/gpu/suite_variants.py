"""Lines of the suite's table about the open choices of decode/tuning.h: which to turn on. Standard library only.

A choice is judged by `ragged_append_decode`, which is what a run calls: by the geometric mean of its times relative to
the kernel as it is, over all layers that were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import geometric_mean

from suite_lines import DRY, INFO, LARGE, Line, Record

DEFAULT = "default"
_LEAST_GAIN, _MOST_LOSS = 0.995, 1.03  # of the mean, and of any one layer: less may be noise
Times = Mapping[tuple[object, ...], float]  # batch, mean, lengths → relative time


def lines(records: Sequence[Record]) -> Iterable[Line]:
    """Yield a line per variant, and the one that says which to turn on; nothing if there are no variants."""
    own = [r for r in records if r.get("bench") == "variants" and r.get("what") == "variant"]
    names = [name for name in dict.fromkeys(r["variant"] for r in own) if name != DEFAULT]
    layers = len({_layer(r) for r in own if r["variant"] == DEFAULT and r["fused"]})
    good: dict[str, float] = {}
    for name in names:
        fused, plain = (_relative(own, name, is_fused) for is_fused in (True, False))
        if not fused or not plain:
            continue
        mean, worst = geometric_mean(fused.values()), max(fused, key=lambda layer: fused[layer])
        measured = f"{mean:.3f}, without the append {geometric_mean(plain.values()):.3f}; most {fused[worst]:.2f} "
        measured += f"({worst[0]} x {worst[1]} {worst[2]}){_skewed(own, name)}"
        is_right = all(r["right"] and "missing" not in r for r in own if r["variant"] == name)
        if is_right and len(fused) == layers and mean <= _LEAST_GAIN and fused[worst] <= _MOST_LOSS:
            good[name] = mean
        yield Line(f"{name}, time of the kernel as it is", "", measured if is_right else f"wrong; {measured}", INFO)
    if names:
        best = min(good, key=lambda name: good[name], default=None)
        defines = next((r["defines"] for r in own if r["variant"] == best), {})
        printed = ", ".join(f"KVB_{key}={value}" for key, value in defines.items())
        verdict = DRY if any(r.get("about", {}).get("toy") for r in own) else INFO
        yield Line("choices of decode/tuning.h to turn on", "", printed or "none: no gain beyond noise", verdict)


def _layer(record: Record) -> tuple[object, ...]:
    return record["batch"], record["mean"], record["lengths"]


def _times(own: Sequence[Record], name: str, fused: bool) -> Times:
    return {_layer(r): r["us"] for r in own if r["variant"] == name and r["fused"] == fused and "missing" not in r}


def _relative(own: Sequence[Record], name: str, fused: bool) -> Times:
    default = _times(own, DEFAULT, fused)
    return {layer: us / default[layer] for layer, us in _times(own, name, fused).items() if layer in default}


def _skewed(own: Sequence[Record], name: str) -> str:
    """Return the largest time of skewed lengths relative to equal ones, of layers that a target is about."""
    times = _times(own, name, True)
    large = {_layer(r) for r in own if r["nbytes"] >= LARGE}
    ratios = [us / times[*layer[:2], "equal"] for layer, us in times.items()
              if layer in large and layer[2] != "equal" and (*layer[:2], "equal") in times]  # fmt: skip
    return f"; skewed over equal {max(ratios):.2f}" if ratios else ""
