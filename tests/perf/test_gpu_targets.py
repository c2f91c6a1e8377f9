"""The verdicts of the GPU suite, on made-up records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.gpu_suite import ROOT, Load, suite


def layer(contender: str, us: float, batch: int = 16, mean: int = 2048, lengths: str = "equal", **more: object):
    nbytes = 4096 * batch * mean
    return {
        "bench": "decode", "batch": batch, "mean": mean, "lengths": lengths, "nbytes": nbytes, "contender": contender,
        "us": us, "of_triad": 0.5, "of_best": 0.4, "error": 1e-3, **more,
    }  # fmt: skip


def step(budget: int | None, tokens_s: float, peak: float, kept: float, roofline: float = 1.1, batch: int = 16):
    return {
        "bench": "step", "batch": batch, "context": 32768, "budget": budget, "mode": "graph", "kernel": "cuda",
        "tpot_s": batch / tokens_s, "tokens_s": tokens_s, "times_roofline": roofline, "peak_bytes": peak,
        "kept_bytes": kept, "times_best_roofline": roofline + 0.1,
    }  # fmt: skip


def verdicts(load, records) -> dict[str, tuple[str, str]]:
    return {line.what: (line.verdict, line.measured) for line in load("suite_targets").lines(records)}


def test_nothing_measured(load):
    matches = verdicts(load, [])
    assert len(matches) == 37 and {verdict for verdict, _ in matches.values()} == {"not measured"}


def test_decode_is_judged_by_the_worst_case_of_the_size_that_the_target_is_about(load: Load) -> None:
    records = [
        layer("ours", 60, batch=32, of_triad=0.96, of_best=0.9, bitwise=True),
        layer("ours", 500, mean=32768, of_triad=1.1, of_best=0.99),
        layer("ours", 30, of_triad=0.89), layer("torch_fa", 33), layer("fa3", 27),
        layer("ours", 31, lengths="pareto"), layer("torch_fa", 93, lengths="pareto"),
        layer("ours", 34, lengths="one_long"), layer("torch_fa", 51, lengths="one_long"),
        layer("ours", 6, mean=128, of_triad=0.3), layer("torch_fa", 5, mean=128),
        layer("ours_fused", 32, lengths="pareto", bench="rivals"),
        layer("ours_fused", 1, lengths="pareto"),
        layer("adakv_described", 128, lengths="pareto", bench="rivals"),
        layer("adakv_wide", 80, lengths="pareto", bench="rivals"),
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["decode at 268 MB a layer and more, of triad"] == (
        "holds", "0.96 (32 x 2048 equal; of the fastest ceiling 0.90)",
    )  # fmt: skip
    assert matches["decode at 134 MB a layer, of triad"] == (
        "does not", "0.89 (16 x 2048 equal; of the fastest ceiling 0.40)",
    )  # fmt: skip
    assert matches["skewed lengths, times equal ones"] == ("does not", "1.13 (16 x 2048 one_long)")
    assert matches["times torch's flash, equal"] == (
        "holds", "1.10 (16 x 2048 equal; memory allows 2.50); all sizes 0.83 (16 x 128 equal)",
    )  # fmt: skip
    assert matches["times torch's flash, skewed"] == ("does not", "1.50 (16 x 2048 one_long; memory allows 2.50)")
    assert matches["times flash-attention 3, equal"] == ("does not", "0.90 (16 x 2048 equal; memory allows 2.50)")
    assert matches["times flash-attention 3, skewed"][0] == "not measured"
    assert matches["step by copying, 16 x 2048"] == ("holds", "4.00 (16 x 2048 pareto); 16-byte copies 2.50")
    assert matches["step by copying, 1 x 32768"][0] == "not measured"
    assert matches["decode, error against float64"][0] == "holds"
    assert matches["three runs equal bit for bit"] == ("holds", "1 of 1")


def test_what_a_run_calls_is_judged_as_well(load: Load) -> None:
    """A decode step of a run appends its token in the same launch."""
    records = [
        layer("ours", 60, batch=32, of_triad=0.96, of_best=0.9), layer("ours_fused", 66, batch=32, of_triad=0.93),
        layer("ours", 60, batch=32, lengths="pareto"), layer("ours_fused", 75, batch=32, lengths="pareto"),
        layer("fa3", 63, batch=32), layer("fa3", 120, batch=32, lengths="pareto"),
    ]  # fmt: skip
    matches = verdicts(load, records)
    for what, alone, appending in (
        ("decode at 268 MB a layer and more, of triad", "holds", "does not"),
        ("skewed lengths, times equal ones", "holds", "does not"),
        ("times flash-attention 3, equal", "holds", "does not"),
        ("times flash-attention 3, skewed", "holds", "holds"),
    ):
        assert (matches[what][0], matches[f"{what}, with the append"][0]) == (alone, appending), what


def test_a_ratio_that_memory_does_not_allow_is_said_to_be_missed_and_impossible(load: Load) -> None:
    """At the fastest ceiling, ours would take the time of the bytes alone."""
    records = [
        layer(name, us, mean=mean, lengths="pareto", of_best=of_best)
        for mean, us_fa3, us_ours, reached in ((32768, 110, 100, 0.9), (2048, 42, 30, 0.6), (4096, 80, 50, 0.55))
        for name, us, of_best in (("fa3", us_fa3, reached), ("ours", us_ours, 0.99))
    ]
    assert verdicts(load, records)["times flash-attention 3, skewed"] == (
        "does not", "1.10 (16 x 32768 pareto; memory allows 1.11); where memory allows 1.5: 1.40",
    )  # fmt: skip


def tried(variant: str, fused: float, plain: float, lengths: str = "equal", mean: int = 2048, **more: object):
    defines = {"default": {}}.get(variant, {"ONE_MERGE": 48} if variant == "merge" else {"WHOLE_ITEMS": 1})
    about = {"bench": "variants", "what": "variant", "variant": variant, "defines": defines, "batch": 16, "mean": mean}
    about |= {"lengths": lengths, "nbytes": 65536 * mean, "right": True}
    return [about | {"fused": is_fused, "us": us} | more for is_fused, us in ((True, fused), (False, plain))]


def test_the_fastest_of_the_open_choices_is_named(load: Load) -> None:
    records = [*tried("default", 36, 35), *tried("default", 37, 36, "pareto"),
               *tried("items", 32, 32), *tried("items", 37, 36, "pareto"),
               *tried("merge", 36, 35), *tried("merge", 36, 36, "pareto")]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["items, time of the kernel as it is"] == (
        "", "0.943, without the append 0.956; most 1.00 (16 x 2048 pareto); skewed over equal 1.16",
    )  # fmt: skip
    choice = "choices of decode/tuning.h to turn on"
    assert matches[choice] == ("", "KVB_WHOLE_ITEMS=1")
    small = [*tried("default", 9, 9, mean=128), *tried("items", 9.4, 9, mean=128), *tried("merge", 9, 9, mean=128)]
    assert verdicts(load, [*records, *small])[choice] == ("", "KVB_ONE_MERGE=48")  # 4 % longer for one layer
    wrong = [r | {"right": False} if r["variant"] == "items" else r for r in records]
    assert verdicts(load, wrong)[choice] == ("", "KVB_ONE_MERGE=48")
    assert verdicts(load, wrong)["items, time of the kernel as it is"][1].startswith("wrong; 0.943")
    assert verdicts(load, [*records, *tried("default", 9, 9, mean=128)])[choice][1].startswith("none")
    assert choice not in verdicts(load, records[:4])
    assert verdicts(load, [r | {"about": {"toy": True}} for r in records])[choice][0] == "dry run"


def test_variants_of_the_kernel_are_compiled_and_checked(load: Load, tmp_path: Path) -> None:
    """The kernel as it is and with all that is new, at toy size on the CPU."""
    variants, records = load("variants"), tmp_path / "records"
    bench = load("bench").Bench("variants", "", ["--toy", "--out", str(records)])
    table = variants.measure(bench, ["default", "whole items + tile ahead + one merge of 48"])
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(lines) == 16 and all(line["right"] and line["error"] < 5e-3 for line in lines) and len(table) == 8
    assert lines[-1]["defines"] == {"WHOLE_ITEMS": 1, "TILE_AHEAD": 1, "ONE_MERGE": 48}


def test_many_queries_are_compared_with_eight_at_a_time(load: Load) -> None:
    def record(group: int, tokens: int, way: str, us: float, error: float = 1e-3, mean: int = 32768):
        about = {"bench": "questions", "group": group, "tokens": tokens, "mean": mean, "way": way, "error": error}
        return about | {"us": us, "roofline_us": 32.0, "bitwise": True}

    records = [record(16, 1, "ours", 40), record(16, 1, "by_eight", 64), record(4, 32, "ours", 80, error=6e-3),
               record(4, 32, "by_eight", 160), record(4, 32, "ours", 9, mean=1024)]  # fmt: skip
    matches = verdicts(load, records)
    first, second = (f"group {group} tokens at 32k, by 8 queries over ours" for group in ("16, 1", "4, 32"))
    assert matches[first] == ("holds", "1.60 (40.0 us, 1.25 rooflines)")
    assert matches[second] == ("does not", "2.00 (80.0 us, 2.50 rooflines)")
    assert matches["many queries, error against float64"] == ("does not", "6.0e-03 (4 x 32, 32768)")
    assert verdicts(load, records[:1])[first][0] == "not measured"


def test_by_eight_gives_what_ours_does(load: Load) -> None:
    questions, layers, bench_ = load("questions"), load("layers"), load("bench")
    bench = bench_.Bench("questions", "", ["--toy"])
    with bench.kernels():
        for shape, tokens in questions.cases(toy=True):
            lengths = [shape.mean, tokens + 3]
            layer_ = layers.Layer(shape, lengths, 1, bench.device, generator=bench.generator)
            queries = questions.Queries(layer_, tokens)
            queries.ours(0)
            queries.by_eight(0)
            apart = (queries.out_BHTD.float() - queries.by_eight_out().float()).abs().max()
            assert float(apart) < 0.02 and queries.out_BHTD.isfinite().all()


@pytest.mark.parametrize(("us", "verdict"), [(6.9, "holds"), (7.1, "does not")])
def test_the_latency_of_one_short_row(load: Load, us: float, verdict: str) -> None:
    records = [layer("ours", us, batch=1, mean=1024), layer("fa3", 14, batch=1, mean=1024)]
    assert verdicts(load, records)["decode, 1 x 1024 equal"] == (verdict, f"{us:.2f} us (flash-attention 3 14.00)")


def test_a_result_without_a_triad_gets_the_share_of_a_read_and_no_verdict(load: Load) -> None:
    old = {"of_copy": 1.3, "tb_s": 3.2}
    records = [
        {key: value for key, value in layer("ours", 42, **old).items() if key not in ("of_triad", "of_best")},
        {"bench": "ceilings", "what": "copy", "bytes_s": 2.5e12},
        {"bench": "ceilings", "what": "read", "bytes_s": 4e12},
        {"bench": "step", "what": "model", "bytes_s": 2.5e12},
        {key: x for key, x in step(1024, 1900, 1, 1, roofline=1.25).items() if key != "times_best_roofline"},
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["decode at 134 MB a layer, of triad"] == (
        "not measured", "0.80 of the read ceiling (16 x 2048 equal); no triad was measured",
    )  # fmt: skip
    assert matches["whole step, 16 x 32k, budget 1024, times the triad's roofline"] == (
        "not measured", "2.00 of the read roofline; no triad was measured",
    )  # fmt: skip


def test_the_committed_results_can_be_read() -> None:
    done = suite("--table", ROOT / "perf/results/gpu_h200.json")
    assert done.returncode == 0 and "0.96 (32 x 2048 equal; of the fastest ceiling 0.90)" in done.stdout
    assert "0.93 (32 x 2048 equal; of the fastest ceiling 0.87)" in done.stdout  # with the append
    assert "1.10 (32 x 32768 adakv; memory allows 1.11)" in done.stdout
    assert all(f"where memory allows 1.5: {ratio}" in done.stdout for ratio in ("1.34", "1.31"))  # alone, and appending
    done = suite("--table", ROOT / "perf/results/gpu_h200_steps.json")
    assert done.returncode == 0 and "7.0 (8.5 s against 59.6 s" in done.stdout
    file = ROOT / "perf/results/gpu_h200_first.json"
    done = suite("--table", file)
    assert done.returncode == 0 and "0.90 of the read ceiling (32 x 2048 equal)" in done.stdout
    assert "decode, 1 x 1024 equal" in done.stdout and file.stat().st_size < 150_000
    other = suite("--table", ROOT / "pyproject.toml")
    assert other.returncode == 2 and "not a gpu_suite.json" in other.stderr


@pytest.mark.parametrize("error", [float("nan"), 6e-3])
def test_an_error_that_is_large_or_no_number(load, error):
    records = [layer("ours", 30), layer("ours", 30, mean=1024) | {"error": error}, layer("ours", 30, mean=512)]
    assert verdicts(load, records)["decode, error against float64"][0] == "does not"


def test_append_and_scoring(load):
    def append(length: int, us: float):
        return {"bench": "append", "batch": 1, "length": length, "way": "ours", "us": us}

    def part(name: str, us: float):
        return {"bench": "scoring", "tokens": 32768, "part": name, "us": us}

    cell = {"bench": "profile", "context": 32768, "budget": 1024, "compress_s": 0.03, "prefill_s": 1.5}
    records = [append(128, 2.0), append(32768, 2.1), part("compress", 120), part("attention", 15000), cell]
    matches = verdicts(load, [*records, part("attention", 12000), part("products", 20000), part("eager", 480)])
    assert matches["append per layer, in a graph, all sizes"] == ("holds", "2.10 us (1 x 32768)")
    assert matches["append, longest over shortest"] == ("holds", "1.05 (32768 tokens)")
    assert matches["score, select, move at 32k, of a layer's prefill"] == (
        "holds", "0.38% (of attention alone 1.00%; eager 4.0x as long)",
    )  # fmt: skip
    assert matches["compressing at 32k, of a model's prefill"] == ("does not", "2.00%")


def test_whole_steps(load: Load) -> None:
    records = [
        step(None, 800, 90e9, 70e9), step(1024, 3600, 23e9, 2e9, roofline=1.35), step(128, 4000, 1, 1, roofline=1.5),
        step(None, 900, 1, 1, batch=1), step(None, 80, 1, 1) | {"kernel": "transformers", "mode": "eager"},
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["16 x 32k, budget 1024, tokens/s of the full cache's"] == ("holds", "4.50 (3600 against 800)")
    assert matches["whole step, 16 x 32k, budget 1024, times the triad's roofline"] == (
        "does not", "1.35 (batch 16, 1024; of the fastest ceiling 1.45); all sizes 1.50 (batch 16, 128)",
    )  # fmt: skip
    assert matches["16 x 32k, budget 1024, peak saved of what it promises"] == ("holds", "0.985 (67.0 of 68.0 GB)")
    assert matches["16 x 32k, tokens/s of plain transformers'"] == ("", "full cache 10.0, budget 1024 45.0")


def test_a_sweep(load: Load) -> None:
    def parts(seconds: float, prefill_s: float):
        return {"seconds": seconds, "prefill_s": prefill_s, "first_token_s": 0.5}

    ratio = {"bench": "sweep", "what": "ratio", "variants": 20, "samples": 20, "measured_alone": 5, "times": 6.0}
    ratio |= {"together": parts(10.0, 2.5), "alone": parts(60.0, 50.0)}
    same = {"bench": "sweep", "what": "alone", "first_tokens_equal": 1.0}
    records = [
        {"bench": "sweep", "what": "together", "limits": "defaults", "seconds": 12.0}, ratio | {"times": 9.0}, ratio,
        same | {"tokens_equal": 0.9}, same | {"tokens_equal": 1.0}, {"bench": "sweep", "what": "alone", "skipped": "x"},
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["sweep of 20 x 20, times as fast as one by one"] == (
        "", "6.0 (10.0 s against 60.0 s; 5.0 with the engine's default limits; 5 of 20 runs measured)",
    )  # fmt: skip
    assert matches["sweep of 20 x 20, seconds together"] == ("", "prefill 2.50, first token 0.50")
    assert matches["sweep of 20 x 20, tokens equal to one by one"] == ("", "95.0%, first ones 100.0%")


def test_a_smaller_card_is_judged_by_the_rows_that_fit(load: Load) -> None:
    matches = verdicts(load, [step(None, 500, 9, 9, batch=12), step(1024, 2500, 9, 9, batch=12), step(1024, 9, 9, 9)])
    assert matches["12 x 32k, budget 1024, tokens/s of the full cache's"] == ("holds", "5.00 (2500 against 500)")


def test_no_more_rows_than_full_caches_fit(load: Load) -> None:
    steps = load("step")
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(nbytes=16e9)])
    cases = [steps.Case(16, 32768, 1024), steps.Case(16, 32768, None), steps.Case(1, 32768, None)]
    steps.row_bytes = lambda model, context: 4.3e9
    for memory, rows in ((150e9, 16), (85e9, 12), (42e9, 4), (30e9, 2), (18e9, 1)):
        fitting = steps.fitting(cases, model, memory)
        assert [case.batch for case in fitting] == [rows, rows, 1]
        assert ("asked_batch" in fitting[0].about()) == (rows < 16)


def test_a_row_of_the_full_cache(load: Load) -> None:
    steps = load("step")
    model = steps.load(toy=True)
    assert steps.row_bytes(model, 1000) == 2 * 4 * 2 * 32 * 4 * (1000 + steps._RESERVE)
    assert steps.weights_read(model) < sum(p.nbytes for p in model.parameters())


def test_a_sanitizer_that_finds_nothing_has_to_find_what_is_planted(load):
    clean = {"step": "memcheck", "status": "ok", "found": 0, "cases": 20}
    what = "compute-sanitizer memcheck"
    assert verdicts(load, [clean])[what][0] == "not measured"
    assert verdicts(load, [clean, {"step": "control", "status": "ok"}])[what] == ("holds", "cases 20, found 0")
    steps = load("suite_steps")
    read = steps._ran("20 cases ran, wrong: none\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors)\n")
    assert read == {"found": 3, "cases": 20} and not steps._clean(0, read)
    assert steps._clean(0, steps._ran("20 cases ran\n========= ERROR SUMMARY: 0 errors"))
    assert not steps._clean(0, steps._ran("========= Error: it could not attach\n========= ERROR SUMMARY: 0 errors"))


def test_a_dry_run_proves_nothing(load):
    records = [layer("ours", 30, bitwise=True) | {"about": {"toy": True}}]
    assert {verdict for verdict, _ in verdicts(load, records).values()} == {"dry run", "not measured"}
