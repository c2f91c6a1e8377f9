"""The ops of the namespace `kvb`: torch.ops.kvb.<op>.

A GPU runs the compiled kernels, which are compiled at the first call. A CPU runs the reference in torch. Both check
their arguments and raise ValueError. `cpu_<op>` is our own C++ for CPUs, for the small ops of a decode step.

All run on the current stream, wait for nothing, and can be captured in a CUDA graph. They are registered by
`Library.define` and `impl`: the decorator `custom_op` costs ten times as much per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvbench_kernels import build
from kvbench_kernels.ops import checks, fakes, host_step, launch, launch_decode, library, reference
from kvbench_kernels.ops.host_library import host_library

SCHEMAS = {
    "ragged_append": "(Tensor(a!) k_RD, Tensor(b!) v_RD, Tensor start_S1, Tensor(c!) length_S, Tensor segment_N, "
    "Tensor k_BUTD, Tensor v_BUTD, Tensor(d!) status) -> ()",
    "ragged_decode": "(Tensor q_BHTD, Tensor k_RD, Tensor v_RD, Tensor start_S1, Tensor length_S, Tensor segment_N, "
    "float scaling, Tensor(a!) out_BHTD, Tensor(b!) workspace, bool settled=False) -> ()",
    "ragged_append_decode": "(Tensor q_BHTD, Tensor k_BUTD, Tensor v_BUTD, Tensor(a!) k_RD, Tensor(b!) v_RD, "
    "Tensor start_S1, Tensor(c!) length_S, Tensor segment_N, float scaling, Tensor(d!) out_BHTD, "
    "Tensor(e!) workspace, Tensor(f!) status, bool settled=False) -> ()",
    "window_score": "(Tensor q_HWD, Tensor k_UTD, Tensor? lse_HW, float scaling, str group, str pool, "
    "int kernel_size) -> Tensor",
    "row_lse": "(Tensor q_HTD, Tensor k_UTD, float scaling) -> Tensor",
    "column_sums": "(Tensor q_HTD, Tensor k_UTD, Tensor lse_HT, float scaling) -> Tensor",
    "select": "(Tensor score_UN, int total, float floor, str scope) -> (Tensor, Tensor)",
    "ragged_gather": "(Tensor k_UTD, Tensor v_UTD, Tensor keep_ST, Tensor head_S, Tensor start_S1, "
    "Tensor(a!) k_RD, Tensor(b!) v_RD) -> ()",
    "ragged_relayout": "(Tensor k_RD, Tensor v_RD, Tensor start_S1, Tensor length_S, Tensor source_M, "
    "Tensor start_M1, Tensor(a!) k_QD, Tensor(b!) v_QD) -> ()",
    "decode_weights": "(Tensor q_NGTD, Tensor k_RD, Tensor start_S1, Tensor length_S, Tensor segment_N, "
    "float scaling, int width) -> Tensor",
    "add_rms_norm": "(Tensor(a!) residual_NC, Tensor? x_NC, Tensor weight_C, float eps) -> Tensor",
    "rope": "(Tensor(a!) q_NHD, Tensor(b!) k_NUD, Tensor cos_ND, Tensor sin_ND, Tensor? q_weight_D, "
    "Tensor? k_weight_D, float eps) -> ()",
    "silu_mul": "(Tensor gate_NF, Tensor up_NF) -> Tensor",
    "linear": "(Tensor x_NC, Tensor weight_OC, Tensor? bias_O, bool gated, bool early) -> Tensor",
    "linear_rope": "(Tensor x_NC, Tensor weight_OC, Tensor? bias_O, Tensor cos_ND, Tensor sin_ND, int heads, "
    "bool early) -> Tensor",
    "packed_decode": "(Tensor q_BHTD, Tensor k_BUTD, Tensor v_BUTD, Tensor k_codes, Tensor k_scale, Tensor k_low, "
    "Tensor k_plain_RD, Tensor v_codes, Tensor v_scale, Tensor v_low, Tensor v_plain_RD, Tensor? k_channel_NC, "
    "Tensor place_N6, Tensor count_N3, int k_bits, int v_bits, int most, float scaling, Tensor(a!) out_BHTD) -> ()",
}

_on_gpu: dict[int, library.Library] = {}
_emulation: library.Library | None = None


def prepare(device: torch.device) -> library.Library:
    """Load the kernels for a GPU, or the functions for a CPU; compile them first if the cache has none.

    Raises:
        ValueError: there is no compiler, the GPU is too old, or the cache cannot be written.
        RuntimeError: they do not compile, or cannot be loaded.
    """
    if device.type == "cpu":
        return host_library()
    number = device.index if device.index is not None else torch.cuda.current_device()
    if number not in _on_gpu:
        _on_gpu[number] = library.load(build.cuda_for(torch.cuda.get_device_capability(number)))
    return _on_gpu[number]


class StepOps(NamedTuple):
    """The small ops of a decode step. STEP_OPS are those in torch.ops.kvb, which compute in torch on a CPU."""

    add_rms_norm: Callable[..., Tensor]
    rope: Callable[..., None]
    silu_mul: Callable[..., Tensor]


def step_ops(device: torch.device) -> StepOps:
    """Return the compiled ops for a device. Raises what `prepare` raises."""
    prepare(device)
    return _step_ops("cpu_") if device.type == "cpu" else STEP_OPS


def _step_ops(prefix: str = "") -> StepOps:
    return StepOps(*(getattr(torch.ops.kvb, prefix + name) for name in StepOps._fields))


@contextmanager
def emulated(path: Path) -> Iterator[None]:
    """Run the kernels themselves on the CPU inside this context, from a library of `build.host`.

    This is for tests: it is very slow.
    """
    global _emulation
    before, _emulation = _emulation, library.load(path)
    try:
        yield
    finally:
        _emulation = before


def workspace(dim: int, device: torch.device) -> Tensor:
    """Return a workspace for `ragged_decode` and `ragged_append_decode` at a head dimension; the other sizes are free.

    The ops leave it ready for the next call. Calls that may run at the same time need a workspace each.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    if device.type != "cuda":
        return launch_decode.workspace(_emulation, dim, device)
    if torch.cuda.is_current_stream_capturing():  # the zeros would be recorded and not written
        raise RuntimeError("kvb: create the workspace before capturing a CUDA graph, by a call outside the capture")
    kernels = prepare(device)
    with torch.cuda.device(device):
        return launch_decode.workspace(kernels, dim, torch.device("cuda", torch.cuda.current_device()))


def _on_cpu_of(op: str) -> Callable[..., Any]:
    check, in_torch, compiled = getattr(checks, op), getattr(reference, op), getattr(launch, op)

    def on_cpu(*arguments: Any) -> Any:
        emulation = _emulation
        check(*arguments, compiled=emulation is not None)
        return in_torch(*arguments) if emulation is None else compiled(emulation, None, *arguments)

    return on_cpu


def _on_gpu_of(op: str) -> Callable[..., Any]:
    check, compiled = getattr(checks, op), getattr(launch, op)

    def on_gpu(*arguments: Any) -> Any:
        check(*arguments, compiled=True)
        device = arguments[0].device
        kernels = prepare(device)
        stream = torch.cuda.current_stream(device).cuda_stream
        if device.index == torch.cuda.current_device():
            return compiled(kernels, stream, *arguments)
        with torch.cuda.device(device):
            return compiled(kernels, stream, *arguments)

    return on_gpu


_LIBRARY = torch.library.Library("kvb", "DEF")
for _op, _schema in SCHEMAS.items():
    _LIBRARY.define(_op + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_op, _on_cpu_of(_op), "CPU")
    _LIBRARY.impl(_op, _on_gpu_of(_op), "CUDA")
    torch.library.register_fake(f"kvb::{_op}", getattr(fakes, _op), lib=_LIBRARY)
for _op in StepOps._fields:
    _LIBRARY.define(f"cpu_{_op}" + SCHEMAS[_op], tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(f"cpu_{_op}", host_step.call_of(_op, host_library), "CPU")
    torch.library.register_fake(f"kvb::cpu_{_op}", getattr(fakes, _op), lib=_LIBRARY)

STEP_OPS = _step_ops()
