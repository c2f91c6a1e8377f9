"""The choice of a backend: which can run on this machine, and why the others cannot."""

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
from kvbench_kernels.ops.host_library import host_library

NAMES = ("cuda", "flash_attn", "cpu", "sdpa", "torch")


@dataclass(frozen=True)
class AttentionSpec:
    """The attention that a backend has to compute."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    group: int  # query heads per KV head


@dataclass(frozen=True)
class Choice:
    """The chosen backend's name and the reason, for the console and the run record."""

    name: str
    reason: str


def choose_backend(kernel: str, spec: AttentionSpec) -> Choice:
    """Choose the backend for `kernel`: the one of that name, or with "auto" the fastest that can run here.

    This compiles kernels if that is necessary.

    Raises:
        ValueError: there is no such kernel, or it cannot run here; the message says what is missing.
    """
    if kernel != "auto":
        if kernel not in NAMES:
            raise ValueError(f"kernel={kernel}: must be one of auto, {', '.join(NAMES)}")
        if (lack := unmet_requirement(kernel, spec, compile_now=True)) is not None:
            raise ValueError(f"kernel={kernel}: {lack}; kernel=auto chooses what can run")
        return Choice(kernel, "as configured" + _details(kernel, spec))
    lacks: list[str] = []
    for name in preferred(spec.device):
        lack = unmet_requirement(name, spec, compile_now=True)
        if lack is None:
            reason = "; ".join(lacks) or f"the fastest on {_device_name(spec.device)}"
            return Choice(name, reason + _details(name, spec))
        lacks.append(f"not {name}: {lack}")
    raise AssertionError("sdpa and torch run everywhere")


def preferred(device: torch.device) -> tuple[str, ...]:
    """Return the names that "auto" tries, the fastest first. The last one runs everywhere."""
    return ("cuda", "flash_attn", "sdpa") if device.type == "cuda" else ("cpu", "torch")


def make_backend(name: str) -> Backend:
    """Create the backend that `choose_backend` chose.

    Raises:
        ValueError, RuntimeError: it cannot run here.
    """
    if name == "cuda":
        return CudaBackend()
    if name == "cpu":
        return CpuBackend()
    if name == "flash_attn":
        return FlashBackend(flash.find()[0])
    return SlabBackend(name, {"sdpa": sdpa, "torch": products}[name])


def unmet_requirement(name: str, spec: AttentionSpec, compile_now: bool = False) -> str | None:
    """Return why a backend cannot compute `spec`; None if it can.

    Args:
        compile_now: compile the kernels if the cache has none; otherwise it is enough that there is a compiler.
    """
    if name in ("sdpa", "torch"):
        return None
    if name == "cpu":
        return _unfit_for_cpu_kernel(spec, compile_now)
    lack = _unfit_for_gpu_kernels(spec)
    if name == "flash_attn":
        if lack is None and (spec.head_dim % 8 or spec.head_dim > 256):
            lack = f"head dimension {spec.head_dim}: flash-attention needs a multiple of 8, at most 256"
        return lack or _no_flash()
    if lack is None and spec.head_dim not in ops.HEAD_DIMS:
        lack = f"head dimension {spec.head_dim}: compiled for {', '.join(map(str, ops.HEAD_DIMS))}"
    return lack or _no_library(spec.device, compile_now)


def _unfit_for_gpu_kernels(spec: AttentionSpec) -> str | None:
    if spec.device.type != "cuda":
        return f"needs an NVIDIA GPU, but the model is on device={spec.device}"
    if not torch.cuda.is_available():
        return "torch finds no GPU" if torch.version.cuda else "this torch was built without CUDA"
    capability = torch.cuda.get_device_capability(spec.device)
    if capability < (8, 0):
        return f"{_device_name(spec.device)} has compute capability {capability[0]}.{capability[1]}; 8.0 is needed"
    if spec.dtype not in ops.DTYPES:
        return f"dtype {str(spec.dtype).removeprefix('torch.')}: needs bfloat16 or float16"
    return None


def _unfit_for_cpu_kernel(spec: AttentionSpec, compile_now: bool) -> str | None:
    if spec.device.type != "cpu":
        return f"needs a CPU, but the model is on device={spec.device}"
    if spec.dtype not in cpu.DTYPES:
        return f"dtype {str(spec.dtype).removeprefix('torch.')}: needs float32 or bfloat16"
    if spec.head_dim not in cpu.HEAD_DIMS:
        return f"head dimension {spec.head_dim}: compiled for {', '.join(map(str, cpu.HEAD_DIMS))}"
    try:
        host_library() if compile_now else compilers.gxx()
    except (ValueError, RuntimeError, OSError) as error:  # a full disk, too
        return str(error).splitlines()[0]  # build.py has logged the rest
    return None


def _details(name: str, spec: AttentionSpec) -> str:
    """Return what a backend found on this machine, for the reason of a choice."""
    if name != "flash_attn":
        return ""
    return f"; attention by {flash.find()[1]}, append by {flash.find_append(spec.device)[1]}"


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
