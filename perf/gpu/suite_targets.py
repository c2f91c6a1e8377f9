"""Targets of the kernels, compared with a suite's records: a line each with target, measured value and verdict.

Needs the standard library only. Ratios are of figures of one run on one device; "worst" is over the cases of at least
128 MB of keys and values per layer, where a line names no shape; the worst of all cases is next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Record = Mapping[str, Any]
LARGE = 128e6
HOLDS, FAILS, UNKNOWN, DRY = "holds", "does not", "not measured", "dry run"


@dataclass(frozen=True)
class Line:
    what: str
    target: str
    measured: str
    verdict: str


def lines(records: Sequence[Record]) -> list[Line]:
    """Return all targets, in order. No target is met by figures of a dry run."""
    result = [*_decode(records), *_append(records), *_scoring(records), *_steps(records), *_sound(records)]
    if not any(record.get("about", {}).get("toy") for record in records):
        return result
    return [line if line.verdict == UNKNOWN else replace(line, verdict=DRY) for line in result]


def table(matches: Sequence[Line]) -> str:
    """Return the lines as text, in columns."""
    rows = [("what", "target", "measured", ""), *((x.what, x.target, x.measured, x.verdict) for x in matches)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def _decode(records: Sequence[Record]) -> Iterable[Line]:
    layers = [r for r in records if r.get("bench") == "decode" and "contender" in r and "us" in r]
    time = {(_point(r), r["lengths"], r["contender"]): r["us"] for r in layers}
    large = {_point(r) for r in layers if r["nbytes"] >= LARGE}

    def ratios(over: str, under: str, kinds: Callable[[str], bool]) -> dict[str, tuple[float, bool]]:
        """Return title of a case → time of one contender over that of another, and True if the case is large."""
        return {
            _title(point, kind): (us / time[point, kind, under], point in large)
            for (point, kind, name), us in time.items()
            if name == over and kinds(kind) and (point, kind, under) in time
        }

    def skewed(kind: str) -> bool:
        return kind != "equal"

    def equal(kind: str) -> bool:
        return kind == "equal"

    shares = {
        _title(_point(r), r["lengths"]): (r["of_copy"], _point(r) in large)
        for r in layers
        if r["contender"] == "ours" and r["lengths"] == "equal"
    }
    yield _least("decode, of the copy bandwidth", 0.85, shares)
    skew = {
        _title(point, kind): (us / time[point, "equal", "ours"], point in large)
        for (point, kind, name), us in time.items()
        if name == "ours" and skewed(kind) and (point, "equal", "ours") in time
    }
    yield _most("skewed lengths, times equal ones", 1.10, skew)
    for rival, title, even, uneven in (
        ("torch_fa", "torch's flash", 1.0, 2.0),
        ("fa3", "flash-attention 3", 0.95, 1.1),
    ):
        yield _least(f"times {title}, equal", even, ratios(rival, "ours", equal))
        yield _least(f"times {title}, skewed", uneven, ratios(rival, "ours", skewed))
    for batch, mean in ((1, 32768), (16, 2048)):
        both = {
            name: {
                title: value
                for title, value in ratios(f"adakv_{name}", "ours_fused", skewed).items()
                if title.startswith(f"{batch} x {mean} ")
            }
            for name in ("described", "wide")
        }
        line = _least(f"step by copying, {batch} x {mean}", 3.0, _all_large(both["described"]))
        if both["wide"]:
            least = min(ratio for ratio, _ in both["wide"].values())
            line = replace(line, measured=f"{line.measured}; 16-byte copies {least:.2f}")
        yield line


def _append(records: Sequence[Record]) -> Iterable[Line]:
    ours = {
        f"{r['batch']} x {r['length']}": r["us"]
        for r in records
        if r.get("bench") == "append" and r.get("way") == "ours" and "us" in r
    }
    what = "append per layer, in a graph"
    if not ours:
        yield Line(what, "<= 2.5 us", "", UNKNOWN)
        yield Line("append, longest over shortest", "<= 1.2", "", UNKNOWN)
        return
    worst = max(ours, key=lambda title: ours[title])
    yield _line(what, "<= 2.5 us", f"{ours[worst]:.2f} us ({worst})", ours[worst] <= 2.5)
    singles = sorted((int(title.split()[-1]), us) for title, us in ours.items() if title.startswith("1 x"))
    if len(singles) < 2:
        yield Line("append, longest over shortest", "<= 1.2", "", UNKNOWN)
        return
    ratio = singles[-1][1] / singles[0][1]
    yield _line("append, longest over shortest", "<= 1.2", f"{ratio:.2f} ({singles[-1][0]} tokens)", ratio <= 1.2)


def _scoring(records: Sequence[Record]) -> Iterable[Line]:
    own = [r for r in records if r.get("bench") == "scoring" and r.get("tokens") == 32768 and "us" in r]
    parts = {r["part"]: r["us"] for r in own if r["part"] != "attention"}
    attention = [r["us"] for r in own if r["part"] == "attention"]
    what, target = "score, select, move at 32k, of the prefill", "<= 1 %"
    yield _whole_prefill(records)
    if "compress" not in parts or not attention or "products" not in parts:
        yield Line(what, target, "", UNKNOWN)
        return
    layer = min(attention) + parts["products"]
    share, alone = parts["compress"] / layer, parts["compress"] / min(attention)
    eager = f"; eager {parts['eager'] / parts['compress']:.1f}x as long" if "eager" in parts else ""
    yield _line(what, target, f"{share:.2%} (of attention alone {alone:.2%}{eager})", share <= 0.01)


def _whole_prefill(records: Sequence[Record]) -> Line:
    """Return the line about a real prefill of the whole model."""
    what, target = "compressing at 32k, of a model's prefill", "<= 1 %"
    cells = [r for r in records if r.get("bench") == "profile" and r["context"] == 32768 and r["budget"] is not None]
    shares = [r["compress_s"] / r["prefill_s"] for r in cells if r.get("compress_s") is not None]
    return _line(what, target, f"{max(shares):.2%}", max(shares) <= 0.01) if shares else Line(what, target, "", UNKNOWN)


def _steps(records: Sequence[Record]) -> Iterable[Line]:
    steps = {
        (r["batch"], r["budget"], r["mode"]): r
        for r in records
        if r.get("bench") == "step" and r.get("context") == 32768 and "tpot_s" in r and r.get("kernel") == "cuda"
    }
    full, small = steps.get((16, None, "graph")), steps.get((16, 1024, "graph"))
    what = "16 x 32k, budget 1024, tokens/s of the full cache's"
    if full is None or small is None:
        yield Line(what, ">= 4", "", UNKNOWN)
    else:
        ratio = small["tokens_s"] / full["tokens_s"]
        yield _line(what, ">= 4", f"{ratio:.2f} ({small['tokens_s']:.0f} against {full['tokens_s']:.0f})", ratio >= 4)
    graphed = {_step(key): (r["times_roofline"], True) for key, r in steps.items() if key[2] == "graph"}
    yield _most("whole step, times the byte roofline", 1.2, graphed)
    what = "16 x 32k, budget 1024, peak saved of what it promises"
    if full is None or small is None or not full.get("peak_bytes"):
        yield Line(what, ">= 0.98", "", UNKNOWN)
        return
    saved, promised = full["peak_bytes"] - small["peak_bytes"], full["kept_bytes"] - small["kept_bytes"]
    printed = f"{saved / promised:.3f} ({saved / 1e9:.1f} of {promised / 1e9:.1f} GB)"
    yield _line(what, ">= 0.98", printed, saved >= 0.98 * promised)


def _sound(records: Sequence[Record]) -> Iterable[Line]:
    ours = [r for r in records if str(r.get("contender", "")).startswith("ours") and "error" in r]
    errors = {_title(_point(r), r["lengths"]): (r["error"], True) for r in ours}
    line = _most("decode, error against float64", 5e-3, errors, "{:.1e}")
    yield line if all(r["error"] == r["error"] for r in ours) else replace(line, measured="not a number", verdict=FAILS)
    same = [r["bitwise"] for r in records if "bitwise" in r]
    what = "three runs equal bit for bit"
    yield _line(what, "all", f"{sum(same)} of {len(same)}", all(same)) if same else Line(what, "all", "", UNKNOWN)
    by_name = {r["step"]: r for r in records if "step" in r}
    for name, title in (("check", "ops against float64"), ("tests", "tests marked cuda")):
        yield _of_step(by_name.get(name), title)
    control = by_name.get("control", {})
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        line = _of_step(by_name.get(tool), f"compute-sanitizer {tool}", "clean")
        if line.verdict == HOLDS and tool == "memcheck" and control.get("status") != "ok":
            line = replace(line, measured=f"{line.measured}; the planted fault was not found", verdict=UNKNOWN)
        yield line
    builds = [r for r in records if r.get("bench") == "compiled" and r.get("what") == "build" and r.get("kernels")]
    printed = [f"{r['spilled']} bytes, {r['registers']} registers at most, {r['seconds']:.0f} s" for r in builds]
    what = "kernels' spills"
    yield _line(what, "0", printed[-1], not builds[-1]["spilled"]) if builds else Line(what, "0", "", UNKNOWN)


def _of_step(step: Record | None, what: str, target: str = "pass") -> Line:
    if step is None or step["status"] in ("missing", "skipped"):
        return Line(what, target, str((step or {}).get("lacks", "")), UNKNOWN)
    words = ("passed", "of", "failed", "errors", "skipped", "cases", "found")
    printed = ", ".join(f"{word} {step[word]}" for word in words if word in step) or step["status"]
    return _line(what, target, printed, step["status"] == "ok")


def _least(what: str, bound: float, cases: Mapping[str, tuple[float, bool]]) -> Line:
    return _bounded(what, f">= {bound:g}", cases, min, lambda value: value >= bound, "{:.2f}")


def _most(what: str, bound: float, cases: Mapping[str, tuple[float, bool]], form: str = "{:.2f}") -> Line:
    return _bounded(what, f"<= {bound:g}", cases, max, lambda value: value <= bound, form)


def _bounded(
    what: str,
    target: str,
    cases: Mapping[str, tuple[float, bool]],
    worst: Callable[..., str],
    fits: Callable[[float], bool],
    form: str,
) -> Line:
    large = {title: value for title, (value, is_large) in cases.items() if is_large}
    if not large:
        return Line(what, target, "", UNKNOWN)
    title = worst(large, key=lambda single: large[single])
    printed = f"{form.format(large[title])} ({title})"
    if len(cases) > len(large):
        any_size = worst(cases, key=lambda single: cases[single][0])
        printed += f"; all sizes {form.format(cases[any_size][0])} ({any_size})"
    return _line(what, target, printed, fits(large[title]))


def _all_large(cases: Mapping[str, tuple[float, bool]]) -> dict[str, tuple[float, bool]]:
    return {title: (value, True) for title, (value, _) in cases.items()}


def _line(what: str, target: str, measured: str, good: bool) -> Line:
    return Line(what, target, measured, HOLDS if good else FAILS)


def _point(record: Record) -> tuple[int, int]:
    return record["batch"], record["mean"]


def _title(point: tuple[int, int], kind: str) -> str:
    return f"{point[0]} x {point[1]} {kind}"


def _step(key: tuple[int, int | None, str]) -> str:
    return f"batch {key[0]}, {'full' if key[1] is None else key[1]}"
