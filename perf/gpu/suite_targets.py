"""Targets of the kernels, compared with a suite's records: a line each with target, measured value and verdict.

Needs the standard library only. Ratios are of figures of one run on one device. Where a line names no size, its verdict
is about the worst case of at least 134 MB of keys and values per layer; the worst of all cases is next to it. Shares
and rooflines are of the measured triad. The share of the fastest ceiling is next to them, since attention reads only
and can be faster than a triad. Results without a triad, from before it was measured, get the share of what a read
moved, and no verdict.

Decode has two lines each: attention alone, and together with the append, which is what a run calls. What it is compared
with appends nothing. Next to a ratio is the largest one that memory allows: at the fastest ceiling, ours would take the
time of the bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import suite_models
import suite_variants
from suite_lines import (
    DRY,
    FAILS,
    HOLDS,
    INFO,
    LARGE,
    UNKNOWN,
    Line,
    Record,
    Value,
    at_least,
    at_most,
    line,
    table,
    unknown,
)

__all__ = ["Line", "lines", "table"]
_DECODE = ("decode", "rivals")  # benchmarks; a ratio is of figures of the same one
_OURS = {"ours": "", "ours_fused": ", with the append"}  # contenders, and how their lines end


def lines(records: Sequence[Record]) -> list[Line]:
    """Return all targets, in order. No target is met by figures of a dry run."""
    kernels = [*_decode(records), *_questions(records), *_append(records), *_scoring(records)]
    result = [*kernels, *suite_models.lines(records), *_sound(records), *suite_variants.lines(records)]
    if not any(record.get("about", {}).get("toy") for record in records):
        return result
    return [single if single.verdict in (UNKNOWN, INFO) else replace(single, verdict=DRY) for single in result]


def _decode(records: Sequence[Record]) -> Iterable[Line]:
    layers = [r for r in records if r.get("bench") in _DECODE and "contender" in r and "us" in r]
    equal = [r for r in layers if r["lengths"] == "equal"]
    for ours, more in _OURS.items():
        yield from _shares([r for r in equal if r["contender"] == ours], records, more)
    yield _latency(
        {r["contender"]: r["us"] for r in layers if (r["batch"], r["mean"], r["lengths"]) == (1, 1024, "equal")}
    )
    for ours, more in _OURS.items():
        times = _ratios(layers, ours, ours, skewed=True, to_equal=True)
        yield at_most(f"skewed lengths, times equal ones{more}", 1.10, times)
    for rival, title, even, uneven in (
        ("fa3", "flash-attention 3", 1.0, 1.5),
        ("torch_fa", "torch's flash", 1.0, 2.0),
    ):
        for ours, more in _OURS.items():
            yield _against(layers, rival, ours, f"times {title}, equal{more}", even, skewed=False)
            yield _against(layers, rival, ours, f"times {title}, skewed{more}", uneven, skewed=True)
    for batch, mean in ((1, 32768), (16, 2048)):
        here = [r for r in layers if _point(r) == (batch, mean)]
        described, wide = (_ratios(here, f"adakv_{name}", "ours_fused", skewed=True) for name in ("described", "wide"))
        copying = at_least(f"step by copying, {batch} x {mean}", 3.0, described)
        if wide:
            least = min(value.number for value in wide.values())
            copying = replace(copying, measured=f"{copying.measured}; 16-byte copies {least:.2f}")
        yield copying


def _shares(ours: Sequence[Record], records: Sequence[Record], more: str) -> Iterable[Line]:
    """Yield the lines about bandwidth, a line per size."""
    read = suite_models.read_ceiling(records)
    for what, least, most, bound in (
        ("decode at 268 MB a layer and more, of triad", 268e6, float("inf"), 0.95),
        ("decode at 134 MB a layer, of triad", 134e6, 268e6, 0.90),
    ):
        what += more
        sized = [r for r in ours if least <= r["nbytes"] < most]
        by_triad = [r for r in sized if "of_triad" in r]
        if by_triad or not sized or read is None:
            yield at_least(what, bound, {
                _title(r): Value(r["of_triad"], more=f"; of the fastest ceiling {r['of_best']:.2f}") for r in by_triad
            })  # fmt: skip
            continue
        share, title = min((1e12 * r["tb_s"] / read, _title(r)) for r in sized)
        yield unknown(what, f">= {bound:g}", f"{share:.2f} of the read ceiling ({title}); no triad was measured")


def _latency(us: Mapping[str, float]) -> Line:
    what, target = "decode, 1 x 1024 equal", "<= 7 us"
    if "ours" not in us:
        return unknown(what, target)
    others = (("ours_fused", "with the append"), ("fa3", "flash-attention 3"), ("torch_fa", "torch's flash"))
    more = ", ".join(f"{title} {us[name]:.2f}" for name, title in others if name in us)
    return line(what, target, f"{us['ours']:.2f} us" + (f" ({more})" if more else ""), us["ours"] <= 7)


def _against(layers: Sequence[Record], rival: str, ours: str, what: str, bound: float, skewed: bool) -> Line:
    """Return the line of a rival's time over ours, with what memory allows at most."""
    cases = _ratios(layers, rival, ours, skewed)
    most = {_title(r): 1 / r["of_best"] for r in layers if r["contender"] == rival and "of_best" in r}
    allowed = {title: f"; memory allows {limit:.2f}" for title, limit in most.items()}
    result = at_least(what, bound, {t: replace(value, more=allowed.get(t, "")) for t, value in cases.items()})
    within = [value.number for t, value in cases.items() if value.counts and most.get(t, bound) >= bound]
    if not within or len(within) == sum(value.counts for value in cases.values()):
        return result
    return replace(result, measured=f"{result.measured}; where memory allows {bound:g}: {min(within):.2f}")


def _ratios(layers: Sequence[Record], over: str, under: str, skewed: bool, to_equal: bool = False) -> dict[str, Value]:
    """Return title of a case → time of one contender over that of another.

    Args:
        skewed: cases of skewed lengths, otherwise of equal ones.
        to_equal: the other's time is that of equal lengths.
    """
    time = {(r["bench"], _point(r), r["lengths"], r["contender"]): r["us"] for r in layers}
    result = {}
    for r in layers:
        other = (r["bench"], _point(r), "equal" if to_equal else r["lengths"], under)
        if r["contender"] == over and (r["lengths"] != "equal") == skewed and other in time:
            result[_title(r)] = Value(r["us"] / time[other], r["nbytes"] >= LARGE)
    return result


def _questions(records: Sequence[Record]) -> Iterable[Line]:
    """Yield the lines about more than 8 queries of a KV head, over 32k tokens."""
    own = [r for r in records if r.get("bench") == "questions" and "us" in r]
    for group, tokens, least in ((16, 1, 1.5), (4, 32, 3.0)):
        what = f"group {group}, {tokens} tokens at 32k, by 8 queries over ours"
        here = {r["way"]: r for r in own if (r["group"], r["tokens"], r["mean"]) == (group, tokens, 32768)}
        if len(here) < 2:
            yield unknown(what, f">= {least:g}")
            continue
        ours, ratio = here["ours"], here["by_eight"]["us"] / here["ours"]["us"]
        times = ours["us"] / ours["roofline_us"]
        yield line(what, f">= {least:g}", f"{ratio:.2f} ({ours['us']:.1f} us, {times:.2f} rooflines)", ratio >= least)
    errors = {f"{r['group']} x {r['tokens']}, {r['mean']}": Value(r["error"]) for r in own if r["way"] == "ours"}
    yield at_most("many queries, error against float64", 5e-3, errors, "{:.1e}")


def _append(records: Sequence[Record]) -> Iterable[Line]:
    ours = {
        f"{r['batch']} x {r['length']}": r["us"]
        for r in records
        if r.get("bench") == "append" and r.get("way") == "ours" and "us" in r
    }
    what, growth = "append per layer, in a graph, all sizes", "append, longest over shortest"
    if not ours:
        yield unknown(what, "<= 2.5 us")
        yield unknown(growth, "<= 1.2")
        return
    worst = max(ours, key=lambda title: ours[title])
    yield line(what, "<= 2.5 us", f"{ours[worst]:.2f} us ({worst})", ours[worst] <= 2.5)
    singles = sorted((int(title.split()[-1]), us) for title, us in ours.items() if title.startswith("1 x"))
    if len(singles) < 2:
        yield unknown(growth, "<= 1.2")
        return
    ratio = singles[-1][1] / singles[0][1]
    yield line(growth, "<= 1.2", f"{ratio:.2f} ({singles[-1][0]} tokens)", ratio <= 1.2)


def _scoring(records: Sequence[Record]) -> Iterable[Line]:
    own = [r for r in records if r.get("bench") == "scoring" and r.get("tokens") == 32768 and "us" in r]
    parts = {r["part"]: r["us"] for r in own if r["part"] != "attention"}
    attention = [r["us"] for r in own if r["part"] == "attention"]
    what, target = "score, select, move at 32k, of a layer's prefill", "<= 1 %"
    yield _whole_prefill(records)
    if "compress" not in parts or not attention or "products" not in parts:
        yield unknown(what, target)
        return
    layer = min(attention) + parts["products"]
    share, alone = parts["compress"] / layer, parts["compress"] / min(attention)
    eager = f"; eager {parts['eager'] / parts['compress']:.1f}x as long" if "eager" in parts else ""
    yield line(what, target, f"{share:.2%} (of attention alone {alone:.2%}{eager})", share <= 0.01)


def _whole_prefill(records: Sequence[Record]) -> Line:
    """Return the line about a real prefill of the whole model."""
    what, target = "compressing at 32k, of a model's prefill", "<= 1 %"
    cells = [r for r in records if r.get("bench") == "profile" and r["context"] == 32768 and r["budget"] is not None]
    shares = [r["compress_s"] / r["prefill_s"] for r in cells if r.get("compress_s") is not None]
    return line(what, target, f"{max(shares):.2%}", max(shares) <= 0.01) if shares else unknown(what, target)


def _sound(records: Sequence[Record]) -> Iterable[Line]:
    ours = [r for r in records if str(r.get("contender", "")).startswith("ours") and "error" in r]
    errors = at_most("decode, error against float64", 5e-3, {_title(r): Value(r["error"]) for r in ours}, "{:.1e}")
    is_number = all(r["error"] == r["error"] for r in ours)
    yield errors if is_number else replace(errors, measured="not a number", verdict=FAILS)
    same = [r["bitwise"] for r in records if "bitwise" in r]
    what = "three runs equal bit for bit"
    yield line(what, "all", f"{sum(same)} of {len(same)}", all(same)) if same else unknown(what, "all")
    by_name = {r["step"]: r for r in records if "step" in r}
    for name, title in (
        ("smoke", "each op once against float64"),
        ("check", "all cases of all ops against float64"),
        ("tests", "tests marked cuda"),
    ):
        yield _of_step(by_name.get(name), title)
    control = by_name.get("control", {})
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        clean = _of_step(by_name.get(tool), f"compute-sanitizer {tool}", "clean")
        if clean.verdict == HOLDS and tool == "memcheck" and control.get("status") != "ok":
            clean = replace(clean, measured=f"{clean.measured}; the planted fault was not found", verdict=UNKNOWN)
        yield clean
    builds = [r for r in records if r.get("what") == "build" and r.get("kernels")]
    printed = [f"{r['spilled']} bytes, {r['registers']} registers at most, {r['seconds']:.0f} s" for r in builds]
    what = "kernels' spills"
    yield line(what, "0", printed[-1], not builds[-1]["spilled"]) if builds else unknown(what, "0")


def _of_step(step: Record | None, what: str, target: str = "pass") -> Line:
    if step is None or step["status"] in ("missing", "skipped"):
        return unknown(what, target, str((step or {}).get("lacks", "")))
    words = ("passed", "of", "failed", "errors", "skipped", "cases", "found")
    printed = ", ".join(f"{word} {step[word]}" for word in words if word in step) or step["status"]
    return line(what, target, printed, step["status"] == "ok")


def _point(record: Record) -> tuple[int, int]:
    return record["batch"], record["mean"]


def _title(record: Record) -> str:
    return f"{record['batch']} x {record['mean']} {record['lengths']}"
