"""Which backends can run here, and why the others cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench_kernels import build, ops
from kvbench_kernels.backends import cpu, flash
from kvbench_kernels.backends.base import Backend
from kvbench_kernels.backends.cpu import CpuBackend
from kvbench_kernels.backends.cuda import CudaBackend
from kvbench_kernels.backends.flash import FlashBackend
from kvbench_kernels.backends.slabs import SlabBackend, products, sdpa
from kvbench_kernels.build import compilers

NAMES = ("cuda", "flash_attn", "cpu", "sdpa", "torch")


@dataclass(frozen=True)
class AttentionSpec:
    """What a backend is to serve."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    group: int  # query heads per KV head


@dataclass(frozen=True)
class Choice:
    """A backend's name, and why it is the one, for the console and the run record."""

    name: str
    reason: str


def choose_backend(kernel: str, use: AttentionSpec) -> Choice:
    """The backend for `kernel`, a name or "auto": the fastest that can run. Compiles the kernels if need be.

    Raises:
        ValueError: no such kernel, or the one that was named cannot run here; says what is missing.
    """
    if kernel != "auto":
        if kernel not in NAMES:
            raise ValueError(f"kernel={kernel}: must be one of auto, {', '.join(NAMES)}")
        if (lack := unmet_requirement(kernel, use, compile_now=True)) is not None:
            raise ValueError(f"kernel={kernel}: {lack}")
        return Choice(kernel, "as configured")
    lacks: list[str] = []
    for name in preferred(use.device):
        lack = unmet_requirement(name, use, compile_now=True)
        if lack is None:
            return Choice(name, "; ".join(lacks) or f"the fastest on {_device_name(use.device)}")
        lacks.append(f"not {name}: {lack}")
    raise AssertionError("sdpa and torch run everywhere")


def preferred(device: torch.device) -> tuple[str, ...]:
    """What "auto" tries, the fastest first; the last one can run everywhere."""
    return ("cuda", "flash_attn", "sdpa") if device.type == "cuda" else ("cpu", "torch")


def make_backend(name: str) -> Backend:
    """The backend that `choose_backend` chose.

    Raises:
        ValueError: flash_attn, and there is none; cpu, and no compiler.
    """
    if name == "cuda":
        return CudaBackend()
    if name == "cpu":
        return CpuBackend()
    if name == "flash_attn":
        return FlashBackend(flash.find()[0])
    return SlabBackend(name, {"sdpa": sdpa, "torch": products}[name])


def unmet_requirement(name: str, use: AttentionSpec, compile_now: bool = False) -> str | None:
    """What a backend lacks to serve `use`; None if nothing.

    Args:
        compile_now: compile the CUDA kernels if they are not; else a compiler is enough.
    """
    if name in ("sdpa", "torch"):
        return None
    if name == "cpu":
        return _unfit_for_cpu_kernel(use, compile_now)
    lack = _unfit_for_gpu_kernels(use)
    if name == "flash_attn":
        if lack is None and (use.head_dim % 8 or use.head_dim > 256):
            lack = f"head dimension {use.head_dim}: flash-attention takes multiples of 8 up to 256"
        return lack or _no_flash()
    if lack is None and use.head_dim not in ops.HEAD_DIMS:
        lack = f"head dimension {use.head_dim}: compiled for {', '.join(map(str, ops.HEAD_DIMS))}"
    return lack or _no_library(use.device, compile_now)


def _unfit_for_gpu_kernels(use: AttentionSpec) -> str | None:
    if use.device.type != "cuda":
        return f"runs on a GPU of NVIDIA, and the model is on device={use.device}"
    if not torch.cuda.is_available():
        return "torch finds no GPU" if torch.version.cuda else "this torch was built without CUDA"
    capability = torch.cuda.get_device_capability(use.device)
    if capability < (8, 0):
        return f"{_device_name(use.device)} has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    if use.dtype not in ops.DTYPES:
        return f"dtype {str(use.dtype).removeprefix('torch.')}: takes bfloat16 and float16"
    return None


def _unfit_for_cpu_kernel(use: AttentionSpec, compile_now: bool) -> str | None:
    if use.device.type != "cpu":
        return f"runs on a CPU, and the model is on device={use.device}"
    if use.dtype != torch.float32:
        return f"dtype {str(use.dtype).removeprefix('torch.')}: takes float32"
    if use.head_dim not in cpu.HEAD_DIMS:
        return f"head dimension {use.head_dim}: compiled for {', '.join(map(str, cpu.HEAD_DIMS))}"
    try:
        cpu.library() if compile_now else compilers.gxx()
    except (ValueError, RuntimeError, OSError) as error:  # a full disk, too
        return str(error).splitlines()[0]  # build.py has logged the rest
    return None


def _no_flash() -> str | None:
    try:
        flash.find()
    except ValueError as error:
        return str(error).splitlines()[0]  # build.py has logged the rest
    return None


def _no_library(device: torch.device, compile_now: bool) -> str | None:
    try:
        if compile_now:
            ops.prepare(device)
        else:
            build.cached(torch.cuda.get_device_capability(device))  # asks for the compilers
    except (ValueError, RuntimeError, OSError) as error:  # a full disk, too
        return str(error).splitlines()[0]  # build.py has logged the rest
    return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
