"""The ops of the namespace kvb: what they accept, that they can be traced, and that they agree with the reference.

What the emulated kernels compute is tested op by op in the other files; here, that the ops reach them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvbench_kernels import build, ops, parity
from kvbench_kernels.ops import reference
from tests.helpers.kernels_prefill import SEED, generator

CPU = torch.device("cpu")
CASES = list(parity.cases(large=False))
ONE_OF_EACH = list({case.op: case for case in reversed(CASES)}.values())
needs_gxx = pytest.mark.gxx


def name(case: parity.Case) -> str:
    return f"{case.op} {case.title}"


def good(op: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, object]:
    """Return arguments that the op accepts, by name, in its order."""
    g = generator(0)
    result = parity.arena(g, 6, 64, 40, 3, dtype)
    k_RD, v_RD, start_S1, length_S, segment_N = result.on(CPU, dtype)
    q, k, v = (torch.randn(2, heads, 3, 64, generator=g).to(dtype) for heads in (6, 3, 3))
    arena = {"k_RD": k_RD.nan_to_num(), "v_RD": v_RD.nan_to_num(), "start_S1": start_S1, "length_S": length_S}
    decoding = {"scaling": 0.125, "out_BHTD": torch.empty_like(q), "workspace": ops.workspace(64, CPU)}
    status = {"status": torch.zeros(1, dtype=torch.int32)}
    prompt = {"q_HTD": torch.randn(4, 30, 64, generator=g).to(dtype), "k_UTD": torch.randn(2, 30, 64).to(dtype)}
    lse = torch.full((4, 30), 3.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    keep_ST = torch.rand(3, 30, generator=g) < 0.1
    place = {"source_M": torch.tensor([4, 1], dtype=torch.int32), "start_M1": torch.tensor([0, 70, 140]).int()}
    return {
        "ragged_append": {**arena, "segment_N": segment_N, "k_BUTD": k, "v_BUTD": v, **status},
        "ragged_decode": {"q_BHTD": q, **arena, "segment_N": segment_N, **decoding},
        "ragged_append_decode": {
            "q_BHTD": q, "k_BUTD": k, "v_BUTD": v, **arena, "segment_N": segment_N, **decoding, **status
        },
        "window_score": {
            "q_HWD": prompt["q_HTD"][:, -8:], "k_UTD": prompt["k_UTD"], "lse_HW": lse[:, -8:].contiguous(),
            "scaling": 0.125, "group": "mean", "pool": "max", "kernel_size": 5,
        },
        "row_lse": {**prompt, "scaling": 0.125},
        "column_sums": {**prompt, "lse_HT": lse, "scaling": 0.125},
        "select": {"score_UN": torch.rand(3, 50, generator=g), "total": 70, "floor": 0.2, "scope": "layer"},
        "ragged_gather": {
            "k_UTD": prompt["k_UTD"], "v_UTD": prompt["k_UTD"].clone(), "keep_ST": keep_ST,
            "head_S": torch.tensor([1, 0, 1]).int(), "start_S1": torch.tensor([0, 30, 60, 90]).int(),
            "k_RD": torch.zeros(90, 64, dtype=dtype), "v_RD": torch.zeros(90, 64, dtype=dtype),
        },
        "add_rms_norm": {
            "residual_NC": torch.randn(3, 64, generator=g).to(dtype), "x_NC": torch.randn(3, 64).to(dtype),
            "weight_C": torch.randn(64).to(dtype), "eps": 1e-5,
        },
        "rope": {
            "q_NHD": q[:, :, 0].clone(), "k_NUD": k[:, :, 0].clone(), "cos_ND": torch.rand(2, 64).to(dtype),
            "sin_ND": torch.rand(2, 64).to(dtype), "q_weight_D": None, "k_weight_D": torch.randn(64).to(dtype),
            "eps": 1e-6,
        },
        "packed_decode": {
            "q_BHTD": q, "k_BUTD": k, "v_BUTD": v, "k_codes": torch.randint(0, 256, (9, 64, 8), generator=g).byte(),
            "k_scale": torch.rand(9, 64).to(dtype), "k_low": torch.rand(9, 64).to(dtype),
            "k_plain_RD": torch.randn(60, 64).to(dtype), "v_codes": torch.randint(0, 256, (90, 2, 8)).byte(),
            "v_scale": torch.rand(90, 2).to(dtype), "v_low": torch.rand(90, 2).to(dtype),
            "v_plain_RD": torch.randn(60, 64).to(dtype), "k_channel_NC": None,
            "place_N6": torch.tensor([[lane, 9 * lane, 9, 10 * lane, 9 * lane, 9] for lane in range(6)]).int(),
            "count_N3": torch.tensor([[40, 32, 33], [5, 0, 1], [0, 0, 0], [32, 32, 32], [9, 0, 9], [1, 0, 0]]).int(),
            "k_bits": 2, "v_bits": 2, "most": 43, "scaling": 0.125, "out_BHTD": torch.empty_like(q),
        },
        "decode_weights": {
            "q_NGTD": torch.randn(3, 2, 1, 64, generator=g).to(dtype), "k_RD": torch.randn(90, 64).to(dtype),
            "start_S1": torch.tensor([0, 30, 60, 90]).int(), "length_S": torch.tensor([3, 30, 7]).int(),
            "segment_N": torch.tensor([1, 2, 0]).int(), "scaling": 0.125, "width": 33,
        },
        "silu_mul": {"gate_NF": torch.randn(3, 72).to(dtype), "up_NF": torch.randn(3, 72).to(dtype)},
        "linear": {
            "x_NC": torch.randn(3, 72, generator=g).to(dtype), "weight_OC": torch.randn(34, 72, generator=g).to(dtype),
            "bias_O": torch.randn(34, generator=g).to(dtype), "gated": True, "early": False,
        },
        "linear_rope": {
            "x_NC": torch.randn(3, 72, generator=g).to(dtype), "weight_OC": torch.randn(64, 72, generator=g).to(dtype),
            "bias_O": None, "cos_ND": torch.rand(3, 16).to(dtype), "sin_ND": torch.rand(3, 16).to(dtype), "heads": 3,
            "early": False,
        },
        "ragged_relayout": {
            **arena, **place, "k_QD": torch.zeros(140, 64, dtype=dtype), "v_QD": torch.zeros(140, 64, dtype=dtype)
        },
    }[op]  # fmt: skip


def call(op: str, arguments: dict[str, object]) -> object:
    return getattr(torch.ops.kvb, op)(*arguments.values())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_reference_agrees_with_itself_in_double_precision(case):
    """These are the cases for a GPU. The reference in float32 on the CPU stays within the bounds of the kernels."""
    assert case.run(CPU, SEED) <= case.bound, f"KVBENCH_SEED={SEED}"


@needs_gxx
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name)
def test_the_ops_reach_the_kernels(case):
    with ops.emulated(build.host()):
        assert case.run(CPU, SEED) <= case.bound, f"KVBENCH_SEED={SEED}"


@needs_gxx
def test_emulation_is_over_after_the_block():
    arguments = good("row_lse", torch.float32)
    message = "k_UTD: is torch.float32; the kernels take bfloat16 and float16"
    with pytest.raises(ValueError, match=message), ops.emulated(build.host()):
        call("row_lse", arguments)
    assert isinstance(call("row_lse", arguments), Tensor)


@pytest.mark.parametrize("op", ops.SCHEMAS)
def test_tracing(op):
    """The schema says what changes, and the shapes without data are those with data."""
    torch.library.opcheck(getattr(torch.ops.kvb, op).default, tuple(good(op, torch.float32).values()))


def test_a_compiled_step_is_the_eager_step():
    """No graph break, and what changes in place does so for the caller, through views as well."""

    def step(out_BTHD, **arguments):
        arguments["out_BHTD"] = out_BTHD.transpose(1, 2)
        torch.ops.kvb.ragged_append_decode(*arguments.values())
        keep, count = torch.ops.kvb.select(out_BTHD[0, 0].float(), 20, 0.1, "layer")
        return out_BTHD * 2, keep, count

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        arguments = good("ragged_append_decode")
        out = function(torch.zeros(2, 3, 6, 64, dtype=torch.bfloat16), **arguments)
        results.append([*out, arguments["k_RD"], arguments["length_S"], arguments["status"]])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert results[0][0].any()


def test_every_op_computes_in_double_precision():
    for op in ops.SCHEMAS:
        if op != "select":
            out = call(op, good(op, torch.float64))
            assert out is None or out.dtype == torch.float64


ODD = torch.zeros(2, 3, 3, 65, dtype=torch.bfloat16)[..., 1:]
WRONG = [
    ("ragged_append", {"k_RD": torch.zeros(9, 2, 64)}, "k_RD: must be contiguous, [slots, head dimension]"),
    ("ragged_append", {"v_RD": torch.zeros(5, 64)}, "v_RD: must be contiguous and of the shape of k_RD"),
    ("ragged_append", {"start_S1": torch.zeros(10)}, "start_S1: must be a contiguous int32 vector on cpu"),
    ("ragged_append", {"length_S": torch.zeros(3).int()}, "start_S1: must have one element more than length_S"),
    ("ragged_append", {"segment_N": torch.zeros(5).int()}, "segment_N: must have an element for each row"),
    ("ragged_append", {"k_BUTD": torch.zeros(2, 3, 3, 64)}, "k_BUTD: is torch.float32, the keys are torch.bfloat16"),
    ("ragged_append", {"v_BUTD": torch.zeros(2, 3, 1, 64)}, "v_BUTD: must have the shape of k_BUTD"),
    ("ragged_append", {"status": torch.zeros(1)}, "status: must be contiguous, torch.int32, [1]"),
    ("ragged_decode", {"q_BHTD": torch.zeros(2, 6, 3, 32)}, "q_BHTD: must be [rows, query heads, tokens, head dim"),
    ("ragged_decode", {"out_BHTD": torch.zeros(2, 6, 1, 64)}, "out_BHTD: must have the shape of q_BHTD"),
    ("ragged_decode", {"segment_N": torch.zeros(5).int()}, "segment_N: must have an element for each row and KV head"),
    ("ragged_append_decode", {"k_BUTD": ODD[:, :, :1], "v_BUTD": ODD[:, :, :1]}, "q_BHTD: must have the rows and tok"),
    ("window_score", {"group": "median"}, "group=median: must be one of mean, max, sum"),
    ("window_score", {"pool": "min"}, "pool=min: must be one of max, avg, none"),
    ("window_score", {"kernel_size": 4}, "kernel_size=4: must be odd"),
    ("window_score", {"lse_HW": torch.zeros(4, 9)}, "lse_HW: must be contiguous, torch.float32, [4, 8]"),
    ("window_score", {"q_HWD": torch.zeros(3, 8, 64).bfloat16()}, "q_HWD: must be [query heads, tokens, head dimens"),
    ("window_score", {"q_HWD": torch.zeros(4, 31, 64).bfloat16()}, "q_HWD: must be one to all of the tokens of k_UTD"),
    ("row_lse", {"q_HTD": torch.zeros(4, 29, 64).bfloat16()}, "q_HTD: must have the tokens of k_UTD"),
    ("column_sums", {"lse_HT": torch.zeros(4, 30).double()}, "lse_HT: must be contiguous, torch.float32, [4, 30]"),
    ("select", {"total": 151}, "total=151: must be between 0 and 150"),
    ("select", {"floor": 1.5}, "floor=1.5: must be between 0 and 1"),
    ("select", {"scope": "model"}, "scope=model: must be one of head, layer"),
    ("select", {"score_UN": torch.zeros(3, 50).int()}, "score_UN: must be [KV heads, tokens], of a floating dtype"),
    ("ragged_gather", {"keep_ST": torch.zeros(3, 30)}, "keep_ST: must be contiguous, torch.bool, [3, 30]"),
    ("ragged_gather", {"head_S": torch.zeros(2).int()}, "start_S1: must have one element more than head_S"),
    ("ragged_gather", {"v_UTD": torch.zeros(2, 29, 64)}, "v_UTD: must have the shape of k_UTD"),
    ("ragged_relayout", {"k_QD": torch.zeros(140, 32)}, "k_QD: must be contiguous, [slots, head dimension of k_RD]"),
    ("ragged_relayout", {"source_M": torch.zeros(3).int()}, "start_M1: must have one element more than source_M"),
    ("add_rms_norm", {"residual_NC": torch.zeros(2, 3, 64)}, "residual_NC: must be [tokens, hidden size]"),
    ("add_rms_norm", {"x_NC": torch.zeros(3, 64)}, "x_NC: must be torch.bfloat16, [3, 64], on cpu"),
    ("add_rms_norm", {"weight_C": torch.zeros(64)}, "weight_C: must be contiguous, torch.bfloat16, [64], on cpu"),
    ("rope", {"q_NHD": torch.zeros(2, 6, 65).bfloat16()}, "q_NHD: must be [tokens, query heads, head dimension], the "),
    ("rope", {"k_NUD": torch.zeros(3, 3, 64).bfloat16()}, "k_NUD: must be [tokens of q_NHD, KV heads, head dimension"),
    ("rope", {"sin_ND": torch.zeros(2, 32).bfloat16()}, "sin_ND: must be torch.bfloat16, [2, 64], on cpu"),
    ("rope", {"k_weight_D": torch.zeros(3, 64)}, "k_weight_D: must be contiguous, torch.bfloat16, [64], on cpu"),
    ("packed_decode", {"k_BUTD": torch.zeros(2, 3, 3, 32)}, "k_BUTD: must be [rows of q_BHTD, KV heads, new tokens,"),
    ("decode_weights", {"width": 0}, "width=0: must be at least 1"),
    (
        "decode_weights",
        {"q_NGTD": torch.zeros(2, 2, 1, 64)},
        "q_NGTD: must be [lanes, query heads per KV",
    ),
    ("packed_decode", {"v_BUTD": torch.zeros(2, 3, 1, 64)}, "v_BUTD: must have the shape of k_BUTD"),
    ("packed_decode", {"k_bits": 3}, "k_bits=3: must be one of 0, 2, 4, 8"),
    ("packed_decode", {"k_codes": torch.zeros(9, 60, 8).byte()}, "k_codes: must be contiguous bytes, [blocks, groups"),
    ("packed_decode", {"k_channel_NC": torch.zeros(6, 40)}, "k_channel_NC: must be contiguous, torch.int16, [6, 40]"),
    ("packed_decode", {"v_scale": torch.zeros(90, 3)}, "v_scale: must be contiguous, torch.bfloat16, [90, 2], on cpu"),
    ("packed_decode", {"v_plain_RD": torch.zeros(60, 32)}, "v_plain_RD: must be contiguous, [slots, head dimension of"),
    ("packed_decode", {"place_N6": torch.zeros(6, 6)}, "place_N6: must be contiguous, torch.int32, [6, 6], on cpu"),
    ("silu_mul", {"gate_NF": torch.zeros(72).bfloat16()}, "gate_NF: must be [tokens, width of the MLP]"),
    ("silu_mul", {"up_NF": torch.zeros(3, 80).bfloat16()}, "up_NF: must be torch.bfloat16, [3, 72], on cpu"),
    ("linear", {"x_NC": torch.zeros(72).bfloat16()}, "x_NC: must be [tokens, inputs]"),
    ("linear", {"weight_OC": torch.zeros(34, 64).bfloat16()}, "weight_OC: must be [outputs, inputs of x_NC]"),
    ("linear", {"weight_OC": torch.zeros(34, 72)}, "weight_OC: must be contiguous, torch.bfloat16, [34, 72], on cpu"),
    (
        "linear",
        {"weight_OC": torch.zeros(72, 34).bfloat16().mT},
        "weight_OC: must be contiguous, torch.bfloat16, [34, ",
    ),
    ("linear", {"bias_O": torch.zeros(17).bfloat16()}, "bias_O: must be contiguous, torch.bfloat16, [34], on cpu"),
    ("linear_rope", {"cos_ND": torch.zeros(2, 16).bfloat16()}, "cos_ND: must be [tokens of x_NC, head dimension], the"),
    ("linear_rope", {"cos_ND": torch.zeros(3, 16)}, "cos_ND: must be contiguous, torch.bfloat16, [3, 16], on cpu"),
    (
        "linear_rope",
        {"sin_ND": torch.zeros(3, 8).bfloat16()},
        "sin_ND: must be contiguous, torch.bfloat16, [3, 16], on",
    ),
    ("linear_rope", {"heads": 5}, "heads: 5; weight_OC has 4"),
    ("linear_rope", {"weight_OC": torch.zeros(40, 72).bfloat16()}, "weight_OC: has 40 rows; must be heads of 16 rows"),
    ("linear", {"weight_OC": torch.zeros(33, 72).bfloat16(), "bias_O": None}, "weight_OC: has 33 rows; must be at lea"),
]


@pytest.mark.parametrize(("op", "wrong", "message"), WRONG, ids=[f"{op} {message[:40]}" for op, _, message in WRONG])
def test_a_wrong_argument_is_named(op, wrong, message):
    with pytest.raises(ValueError) as info:
        call(op, good(op) | wrong)
    assert str(info.value).startswith(message)


ROPE = {"q_NHD": (6,), "k_NUD": (3,), "cos_ND": (), "sin_ND": ()}
WRONG_FOR_KERNELS = [
    ("ragged_append", {"k_BUTD": ODD}, "k_BUTD: rows must be contiguous and aligned to 16 bytes"),
    ("ragged_decode", {"q_BHTD": torch.zeros(2, 6, 64, 3).bfloat16().mT}, "q_BHTD: rows must be contiguous and align"),
    ("ragged_decode", {"workspace": torch.zeros(0)}, "workspace: must be what ops.workspace gives for cpu"),
    ("ragged_decode", {"workspace": torch.zeros(64).byte()}, "workspace: has 64 bytes, "),
    ("select", {"score_UN": torch.zeros(3, 50).double()}, "score_UN: must be contiguous float32 for the kernels"),
    (
        "row_lse",
        {"q_HTD": torch.zeros(4, 30, 72).bfloat16(), "k_UTD": torch.zeros(2, 30, 72).bfloat16()},
        "k_UTD: has head dimension 72; the kernels are compiled for 64, 80, 96, 128, 256",
    ),
    (
        "add_rms_norm",
        {"x_NC": torch.zeros(3, 65).bfloat16()[:, 1:]},
        "x_NC: rows must be contiguous and aligned to 16 bytes",
    ),
    (
        "rope",
        {key: torch.zeros(2, *heads, 24).bfloat16() for key, heads in ROPE.items()} | {"k_weight_D": None},
        "q_NHD: has rows of 24 elements; the kernels take multiples of 16 up to 512",
    ),
    (
        "silu_mul",
        {"gate_NF": torch.zeros(3, 12).bfloat16(), "up_NF": torch.zeros(3, 12).bfloat16()},
        "gate_NF: has rows of 12 elements; the kernels take multiples of 8",
    ),
    ("linear", {"x_NC": torch.zeros(17, 72).bfloat16()}, "x_NC: has 17 tokens; the kernel takes up to 16"),
    (
        "linear",
        {"x_NC": torch.zeros(3, 60).bfloat16(), "weight_OC": torch.zeros(34, 60).bfloat16()},
        "x_NC: has rows of 60 elements; the kernels take multiples of 8",
    ),
]


@needs_gxx
@pytest.mark.parametrize(("op", "wrong", "message"), WRONG_FOR_KERNELS, ids=[x[2][:40] for x in WRONG_FOR_KERNELS])
def test_the_kernels_ask_for_more(op, wrong, message):
    with ops.emulated(build.host()), pytest.raises(ValueError) as info:
        call(op, good(op) | wrong)
    assert str(info.value).startswith(message)


def test_rows_copies_only_what_the_kernels_cannot_read():
    x = torch.zeros(2, 5, 3, 64).bfloat16()
    assert ops.rows(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    assert ops.rows(x[:, 1:, 2:]).stride() == x.stride()
    for odd in (x.mT, torch.zeros(2, 3, 65).bfloat16()[..., 1:], torch.zeros(2, 3, 68).bfloat16()[..., :64]):
        assert ops.rows(odd).is_contiguous() and torch.equal(ops.rows(odd), odd)


@pytest.mark.cuda
@pytest.mark.parametrize("case", list(parity.cases(large=True)), ids=name)
def test_the_kernels_on_the_gpu(case):
    assert case.run(torch.device("cuda"), SEED) <= case.bound, f"KVBENCH_SEED={SEED}"


@pytest.mark.cuda
def test_a_step_in_a_cuda_graph_goes_on_where_the_last_one_ended():
    """The lengths on the device grow with each replay, and the output is that of the reference."""
    exact = good("ragged_append_decode", torch.float64)
    exact = {key: value.bfloat16().double() if is_float(value) else value for key, value in exact.items()}
    exact["start_S1"] = (exact["start_S1"] + 20 * torch.arange(10)).int()
    for key in ("k_RD", "v_RD"):
        exact[key] = torch.randn(int(exact["start_S1"][-1]), 64).bfloat16().double()
    own = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in exact.items()}
    own = {key: value.bfloat16() if is_float(value) else value for key, value in own.items()}
    own["workspace"] = ops.workspace(64, torch.device("cuda"))
    exact["workspace"] = None
    call("ragged_append_decode", own)  # compiles
    reference.ragged_append_decode(*exact.values())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call("ragged_append_decode", own)
    for _ in range(5):
        graph.replay()
        reference.ragged_append_decode(*exact.values())
        assert parity.error(own["out_BHTD"], exact["out_BHTD"]) < 5e-3
    assert torch.equal(own["length_S"].cpu(), exact["length_S"]) and int(own["status"]) == 0


@pytest.mark.cuda
@pytest.mark.parametrize("op", ["ragged_decode", "window_score", "column_sums", "select", "linear"])
def test_three_runs_are_equal_bit_for_bit(op):
    arguments = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in good(op).items()}
    if "workspace" in arguments:
        arguments["workspace"] = ops.workspace(64, torch.device("cuda"))
    outs = []
    for _ in range(3):
        out = call(op, arguments)
        outs.append(arguments["out_BHTD"].clone() if out is None else out[0] if op == "select" else out)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
