"""Lines of the suite's table about whole models: decode steps and a sweep. Needs the standard library only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from suite_lines import INFO, Line, Record, Value, at_most, line, unknown

_CONTEXT, _BUDGET = 32768, 1024  # what the targets are about, with 16 rows or as many as fit
Key = tuple[int, int | None, str, str]  # rows, budget, mode, kernel


def read_ceiling(records: Sequence[Record]) -> float | None:
    """Return the bytes per second of the fastest read; None if none was measured."""
    rates = [r["bytes_s"] for r in records if r.get("bench") == "ceilings" and r["what"] == "read" and "bytes_s" in r]
    return max(rates, default=None)


def lines(records: Sequence[Record]) -> Iterable[Line]:
    """Yield the lines, in order."""
    steps = {
        (r["batch"], r["budget"], r["mode"], r["kernel"]): r
        for r in records
        if r.get("bench") == "step" and r.get("context") == _CONTEXT and "tpot_s" in r
    }
    batch = _batch(steps)
    full, small = steps.get((batch, None, "graph", "cuda")), steps.get((batch, _BUDGET, "graph", "cuda"))
    yield _speed_up(batch, full, small)
    yield _roofline(batch, steps, records)
    yield from _fused(steps)
    yield from _products(records)
    yield _saved(batch, full, small)
    yield from _peer(steps)
    yield from _pools(records)
    yield from _breakdowns(records)
    yield from _sweep([r for r in records if r.get("bench") == "sweep"])


def _batch(steps: Mapping[Key, Record]) -> int:
    """Return the largest number of rows that was measured with and without a budget; 16 if there is none."""
    rows = {key[0] for key in steps}
    return max((b for b in rows if all((b, x, "graph", "cuda") in steps for x in (None, _BUDGET))), default=16)


def _speed_up(batch: int, full: Record | None, small: Record | None) -> Line:
    what = f"{batch} x 32k, budget {_BUDGET}, tokens/s of the full cache's"
    if full is None or small is None:
        return unknown(what, ">= 4")
    ratio = small["tokens_s"] / full["tokens_s"]
    return line(what, ">= 4", f"{ratio:.2f} ({small['tokens_s']:.0f} against {full['tokens_s']:.0f})", ratio >= 4)


def _roofline(batch: int, steps: Mapping[Key, Record], records: Sequence[Record]) -> Line:
    what = f"whole step, {batch} x 32k, budget {_BUDGET}, times the triad's roofline"
    graphed = {key: r for key, r in steps.items() if key[2:] == ("graph", "cuda")}
    with_triad = {key: r for key, r in graphed.items() if "times_best_roofline" in r}
    if with_triad or not graphed:
        cases = {
            _title(key): Value(
                r["times_roofline"],
                counts=key[:2] == (batch, _BUDGET),
                more=f"; of the fastest ceiling {r['times_best_roofline']:.2f}",
            )
            for key, r in with_triad.items()
        }
        return at_most(what, 1.3, cases)
    copied = [r["bytes_s"] for r in records if r.get("bench") == "step" and r.get("what") == "model"]
    own, read = graphed.get((batch, _BUDGET, "graph", "cuda")), read_ceiling(records)
    if own is None or read is None or not copied:
        return unknown(what, "<= 1.3")
    times = own["times_roofline"] * read / copied[-1]
    return unknown(what, "<= 1.3", f"{times:.2f} of the read roofline; no triad was measured")


def _fused(steps: Mapping[Key, Record]) -> Iterable[Line]:
    """Yield how much faster fused steps are than others over the same cache; there is no target."""
    for mode, whose in (
        ("own-graph", "those of transformers' layers"),
        ("cublas-graph", "those with cuBLAS's products"),
        ("graph-host", "those with the host in between"),
    ):
        ratios = {
            _title(key): other["tpot_s"] / steps[*key[:2], "graph", key[3]]["tpot_s"]
            for key, other in steps.items()
            if key[2] == mode and (*key[:2], "graph", key[3]) in steps and key[3] == "cuda"
        }
        if ratios:
            printed = ", ".join(f"{title} {ratio:.2f}" for title, ratio in ratios.items())
            yield Line(f"fused steps, times as fast as {whose}", "", printed, INFO)


def _products(records: Sequence[Record]) -> Iterable[Line]:
    """Yield how much faster our products of a layer are than cuBLAS's; there is no target."""
    time = {
        (r["product"], r["tokens"]): r
        for r in records
        if r.get("bench") == "linear" and r.get("what") == "layer" and "us" in r
    }
    ratios = {
        tokens: (time["torch", tokens]["us"] / r["us"], r["of_triad"])
        for (name, tokens), r in time.items()
        if name == "default" and ("torch", tokens) in time
    }
    if ratios:
        printed = ", ".join(f"{n} tokens {ratio:.2f} ({share:.2f} of triad)" for n, (ratio, share) in ratios.items())
        yield Line("own products of a layer, times as fast as cuBLAS's", "", printed, INFO)


def _saved(batch: int, full: Record | None, small: Record | None) -> Line:
    what = f"{batch} x 32k, budget {_BUDGET}, peak saved of what it promises"
    if full is None or small is None or not full.get("peak_bytes"):
        return unknown(what, ">= 0.98")
    saved, promised = full["peak_bytes"] - small["peak_bytes"], full["kept_bytes"] - small["kept_bytes"]
    if promised <= 0:
        return unknown(what, ">= 0.98")
    printed = f"{saved / promised:.3f} ({saved / 1e9:.1f} of {promised / 1e9:.1f} GB)"
    return line(what, ">= 0.98", printed, saved >= 0.98 * promised)


def _peer(steps: Mapping[Key, Record]) -> Iterable[Line]:
    """Yield how much faster steps are than those of plain transformers with the full cache; there is no target."""
    for (batch, _, _, kernel), peer in sorted(steps.items(), key=lambda item: -item[0][0]):
        if kernel != "transformers":
            continue
        ways = {"full cache": (batch, None, "graph", "cuda"), f"budget {_BUDGET}": (batch, _BUDGET, "graph", "cuda")}
        ratios = {title: peer["tpot_s"] / steps[key]["tpot_s"] for title, key in ways.items() if key in steps}
        printed = ", ".join(f"{title} {ratio:.1f}" for title, ratio in ratios.items())
        yield Line(f"{batch} x 32k, tokens/s of plain transformers'", "", printed, INFO)


def _pools(records: Sequence[Record]) -> Iterable[Line]:
    """Yield at which sizes of the KV pool a method is faster than full caches; there is no target."""
    cells = {r["id"]: r for r in records if r.get("bench") == "profile" and "pool" in r}  # the latest of each
    if not cells:
        return
    crossover = _crossover()
    rows = [
        cell
        | {
            "name": cell["method"],
            "budget": "full" if cell["budget"] is None else str(cell["budget"]),
            "pool_tokens": cell["batch"] * cell["row_tokens"],
        }
        for cell in cells.values()
    ]
    for text in crossover.lines(crossover.crossovers(rows), rows):
        what, _, measured = text.partition(": ")
        yield from (Line(f"KV pool, {what}", "", half, INFO) for half in measured.rstrip(".").split("; "))


def _crossover() -> ModuleType:
    """Return the module that compares a method with full caches, which needs the standard library only."""
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)
    try:
        return importlib.import_module("kvbench.profile.crossover")
    finally:
        sys.path.remove(root)


def _breakdowns(records: Sequence[Record]) -> Iterable[Line]:
    """Yield where the time of a step goes; there is no target."""
    for r in records:
        if r.get("bench") != "breakdown" or "families" not in r:
            continue
        order = sorted(r["families"].items(), key=lambda item: -item[1]["us"])
        parts = ", ".join(f"{name} {entry['us'] / 1e3:.2f}" for name, entry in order)
        total = f"{r['device_us'] / 1e3:.2f} ms of {r['step_us'] / 1e3:.2f}, {r['kernels']:.0f} kernels"
        yield Line(f"device time of a step, batch {r['batch']}, budget {r['budget']}", "", f"{total}: {parts}", INFO)


def _sweep(records: Sequence[Record]) -> Iterable[Line]:
    """Yield how much faster a sweep is than its variants one by one, and where its time goes; there is no target."""
    ratios = [r for r in records if r["what"] == "ratio"]
    if not ratios:
        return
    last = ratios[-1]  # has the most runs
    together, alone = last["together"], last["alone"]
    printed = f"{last['times']:.1f} ({together['seconds']:.1f} s against {alone['seconds']:.1f} s"
    default = [r["seconds"] for r in records if r["what"] == "together" and r.get("limits") == "defaults"]
    if default:
        printed += f"; {alone['seconds'] / default[-1]:.1f} with the engine's default limits"
    printed += f"; {last['measured_alone']} of {last['variants']} runs measured)"
    title = f"sweep of {last['variants']} x {last['samples']}"
    yield Line(f"{title}, times as fast as one by one", "", printed, INFO)
    for way, parts in (("together", together), ("one by one", alone)):
        shares = ((name.removesuffix("_s").replace("_", " "), parts[name]) for name in parts if name != "seconds")
        yield Line(f"{title}, seconds {way}", "", ", ".join(f"{name} {s:.2f}" for name, s in shares), INFO)
    same = [r for r in records if r["what"] == "alone" and "tokens_equal" in r]
    means = [sum(r[name] for r in same) / len(same) for name in ("tokens_equal", "first_tokens_equal")] if same else []
    if means:
        yield Line(f"{title}, tokens equal to one by one", "", f"{means[0]:.1%}, first ones {means[1]:.1%}", INFO)


def _title(key: Key) -> str:
    return f"batch {key[0]}, {'full' if key[1] is None else key[1]}"
