"""The means of the GPU suite for measuring: layers, rivals, kernels by family, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from kvbench.cache.ragged import RaggedCache
from kvbench.engine import graph
from kvbench_kernels import backends
from tests.helpers.gpu_suite import Load
from tests.helpers.recorder import Recorder


def test_all_ways_of_a_step_decode_the_same(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager steps, recorded ones as the engine runs them, and recorded ones with the host in between."""
    step, ids = load("step"), {}
    monkeypatch.setattr(graph, "CudaRecorder", Recorder)
    bench, model, case = load("bench").Bench("step", "", ["--toy"]), step.load(True), step.Case(2, 96, 24)
    for way in ("eager", "graph", "graph-host"):
        bench.generator.manual_seed(0)
        cache = RaggedCache(step.num_layers(model), backends.make_backend("cuda"))
        step.fill(cache, case, model, bench)
        with torch.inference_mode():
            decoding = step.Decoding(model, cache, case.batch, case.context, bench.device)
        forward = decoding.fused
        if way == "graph":
            steps = decoding.recorded(forward, cache)
        else:
            recorder = (cache, Recorder()) if way == "graph-host" else None
            steps = step.HostBetween(decoding.caches, forward, recorder, bench.device)
        with step.kvbench_attention(model), torch.inference_mode():
            step.timed(decoding, steps, 12)
        assert (steps.replayed > 12) == (way != "eager") and decoding.grown == step._WARM + 12
        ids[way] = [row.ids for row in decoding.rows], cache.lengths(0)
    assert ids["eager"] == ids["graph"] == ids["graph-host"]
    assert len(set(ids["eager"][0][0])) > 1


def test_kernels_by_family(load: Load) -> None:
    breakdown = load("breakdown")
    names = {
        "nvjet_hsh_128x64": "GEMM", "sm90_xmma_gemm_bf16": "GEMM", "cublasLt::splitKreduce_kernel": "GEMM",
        "void kvb::decode<__nv_bfloat16, 128, true>(kvb::DecodeArguments)": "attention", "kvb::append(x)": "append",
        "flash_fwd_splitkv_kernel": "attention", "triton_red_fused_mul_rsqrt_0": "norm", "Memcpy HtoD": "copies",
        "kvb::rms_norm<float>": "norm", "vectorized_elementwise_kernel": "other", "CatArrayBatchedCopy": "copies",
        "elementwise_kernel silu": "activation",
    }  # fmt: skip
    assert {name: breakdown.family(breakdown.Kernel(name, 1)) for name in names} == names
    modules = {
        "LlamaRMSNorm": "norm",
        "LlamaAttention": "rope",
        "LlamaRotaryEmbedding": "rope",
        "LlamaMLP": "activation",
    }
    for module, family in modules.items():
        assert breakdown.family(breakdown.Kernel("vectorized_elementwise_kernel copy", 1, module)) == family
        assert breakdown.family(breakdown.Kernel("nvjet", 1, module)) == "GEMM"


def test_a_replayed_kernel_gets_the_module_of_the_eager_one(load: Load) -> None:
    breakdown = load("breakdown")
    eager = [breakdown.Kernel(name, 9, module) for name, module in (("mul", "LlamaRMSNorm"), ("mul", "LlamaMLP"))]
    replayed = [breakdown.Kernel(name, us) for name, us in (("mul", 1), ("new", 2), ("mul", 4), ("mul", 1), ("mul", 4))]
    summed = breakdown.summed(breakdown.with_modules(replayed, eager), steps=2)
    assert summed == {
        "norm": {"us": 1, "count": 1}, "activation": {"us": 4, "count": 1}, "other": {"us": 1, "count": 0.5},
    }  # fmt: skip


def test_whatever_a_rival_raises_its_measurement_is_missing(load: Load, tmp_path: Path) -> None:
    decode, layers = load("decode"), load("layers")
    bench = load("bench").Bench("decode", "", ["--toy"])
    shape = layers.Shape(1, 24, heads=4, kv_heads=2, dim=64)
    layer_ = layers.Layer(shape, [24, 24], 2, bench.device)

    def bad(_: object) -> None:
        raise TypeError("no such argument\nmore")

    assert decode.measure(bench, layer_, "fa3", bad) == {"missing": "no such argument"}
    with pytest.raises(TypeError):
        decode.measure(bench, layer_, "ours", bad)


@pytest.mark.parametrize(("status", "message"), [(-1, "two calls used one workspace"), (3, "segment 2 had no room")])
def test_a_status_that_is_not_zero_is_named(load: Load, status: int, message: str) -> None:
    decode, layers = load("decode"), load("layers")
    bench = load("bench").Bench("decode", "", ["--toy"])
    layer_ = layers.Layer(layers.Shape(1, 24, heads=4, kv_heads=2, dim=64), [24, 24], 2, bench.device)
    layer_.status.fill_(status)
    with pytest.raises(RuntimeError, match=f"sdpa_padded: {message}"):
        decode.measure(bench, layer_, "sdpa_padded", lambda _: lambda _: torch.zeros(1))


def test_an_error_that_ends_the_context_ends_the_benchmark(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("bench").Bench("decode", "", ["--toy", "--out", str(tmp_path / "records")])

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    bench.about = {}
    bench.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit, match="fa3 ended the CUDA context"):
        bench.survive(RuntimeError("CUDA error: an illegal memory access"), "fa3")
    assert '"what": "stopped", "by": "fa3"' in (tmp_path / "records").read_text()


def test_lengths_have_one_total(load):
    layers = load("layers")
    for shape in (layers.Shape(16, 2048), layers.Shape(1, 32768), layers.Shape(1, 24, heads=4, kv_heads=2)):
        for kind in layers.LENGTHS:
            result = layers.lengths(kind, shape)
            assert len(result) == shape.segments and min(result) >= 1 and sum(result) == shape.segments * shape.mean
    assert max(layers.lengths("one_long", layers.Shape(1, 32768))) == pytest.approx(0.75 * 8 * 32768, abs=8)
    assert max(layers.lengths("one_long", layers.Shape(16, 2048))) == pytest.approx(16 * 2048, abs=128)


def test_the_op_of_fa3_is_looked_at(load):
    rivals = load("rivals")
    more = ", ".join(f"Tensor? {name} = None" for name in rivals._FA3_ARGUMENTS[3:])
    schema = torch._C.parse_schema(f"fa3::fwd(Tensor q, Tensor k, Tensor v, {more}, int sm_margin = 0) -> Tensor")
    rivals.check_fa3(schema)
    other = str(schema).replace("(Tensor q", "(Tensor page, Tensor q").replace(", Tensor? num_splits=None", "")
    with pytest.raises(ValueError, match=r"lacks \['num_splits'\], wants \['page'\]"):
        rivals.check_fa3(torch._C.parse_schema(other))


def test_runs_of_a_sweep_that_were_not_measured_take_as_long_as_others_of_their_method(load: Load) -> None:
    sweep = load("sweep")
    variants = sweep._TOY.variants()
    assert len(variants) == 10 and len(sweep._REAL.variants()) == 20
    parts = dict.fromkeys(sweep._PARTS, 1.0)
    alone = {variants[0]: {"seconds": 2.0, **parts}, variants[1]: {"seconds": 4.0, **parts}}
    total = sweep.whole(variants, alone)
    assert total["seconds"] == 2 * 2.0 + 2 * 4.0 + 6 * 3.0 and total["prefill_s"] == 10.0


def test_the_parts_of_a_sweeps_time(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = load("sweep_clock")
    clock, time = clocks.Clock(torch.device("cpu")), [0.0]
    monkeypatch.setattr(clocks, "now", lambda _: time[0])
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: time[0])

    def after(seconds: float, *call: object) -> None:
        time[0] += seconds
        name, *arguments = call
        getattr(clock, str(name))(*arguments)

    after(5, "drawn")
    after(1, "drawn")
    for tokens in (96, 96):
        after(2, "begun", tokens)
        after(1, "ended")
    for seconds in (3.0, 0.5):
        after(1 if seconds == 3.0 else 0, "begun", 1)
        after(0, "ended")
        after(seconds, "stepped", seconds, seconds < 1)
    assert (clock.joined, clock.laid_out, clock.step_s, clock.replayed) == (7, 1, [3.0, 0.5], 1)


def test_a_sweep_that_does_not_fit_into_one_batch_is_measured_in_smaller_ones(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    sweep, whole = load("sweep"), load("sweep").Runner.run
    records = tmp_path / "records"

    def run(self: object, samples: Sequence[int], variants: Sequence[object], *rest: object) -> object:
        if len(rest) == 1 and len(samples) > 1 and len(variants) > 1:
            raise torch.OutOfMemoryError("out of memory\nmore")
        return whole(self, samples, variants, *rest)

    monkeypatch.setattr(sweep.Runner, "run", run)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))  # a dry run takes a single one
    with pytest.raises(SystemExit, match="all rows together: out of memory"):
        sweep.main(["--toy", "--out", str(records)])
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    together = [(r["limits"], r.get("missing"), r.get("rows_per_step")) for r in lines if r["what"] == "together"]
    assert together == [("memory", "out of memory", None), ("defaults", None, 20)]
    assert sum(r["what"] == "alone" and r["tokens_equal"] == 1 for r in lines) == 10
    assert [r["measured_alone"] for r in lines if r["what"] == "ratio"] == list(range(1, 11))
