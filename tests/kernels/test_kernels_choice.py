"""The choice of a backend for a model, and the message if one cannot run."""

from __future__ import annotations

import pytest
import torch

from kvbench import config
from kvbench_kernels import backends, build, ops
from kvbench_kernels.backends import AttentionSpec, choice, flash
from kvbench_kernels.build import compilers

MODEL = AttentionSpec(torch.device("cpu"), torch.float32, 128, 4)


class Gpu:
    """A GPU that is not there, and what else is or is not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        self.capability(9, 0)
        self.compiles(None)

    def capability(self, major: int, minor: int) -> None:
        self.patch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    def compiles(self, error: Exception | None) -> None:
        def prepare(device: torch.device) -> None:
            if error is not None:
                raise error

        self.patch.setattr(ops, "prepare", prepare)

    def use(self, dtype: torch.dtype = torch.bfloat16, head_dim: int = 128) -> AttentionSpec:
        return AttentionSpec(torch.device("cuda"), dtype, head_dim, 4)


@pytest.fixture
def gpu(monkeypatch):
    flash.find_append.cache_clear()
    yield Gpu(monkeypatch)
    flash.find_append.cache_clear()


def test_the_names_are_those_of_the_configuration():
    assert ("auto", *backends.NAMES) == config.KERNELS


def test_auto_takes_the_fastest_that_can_run(gpu):
    assert backends.choose_backend("auto", gpu.use()) == backends.Choice("cuda", "the fastest on NVIDIA H200")
    chosen = backends.choose_backend("auto", gpu.use(head_dim=72))
    assert chosen.name == "flash_attn"
    how = f"attention by {flash.find()[1]}, append by"
    assert chosen.reason == f"not cuda: head dimension 72: compiled for 64, 80, 96, 128, 256; {how} kvb.ragged_append"
    flash.find_append.cache_clear()
    gpu.compiles(ValueError("no nvcc in CUDA_HOME"))
    chosen, lack = backends.choose_backend("auto", gpu.use()), "no nvcc in CUDA_HOME"
    reason = f"not cuda: {lack}; {how} torch, without kvb.ragged_append: {lack}"
    assert chosen == backends.Choice("flash_attn", reason)
    assert backends.choose_backend("flash_attn", gpu.use()).reason.startswith(f"as configured; {how} torch, without ")
    assert backends.choose_backend("auto", gpu.use(torch.float32)).name == "sdpa"
    gpu.patch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    chosen = backends.choose_backend("auto", gpu.use())
    assert chosen.name == "sdpa" and "not flash_attn: no flash-attn that accepts live lengths, and " in chosen.reason
    assert backends.make_backend("sdpa").name == "sdpa"


def test_auto_on_a_cpu(monkeypatch):
    monkeypatch.setattr(choice, "host_library", lambda: None)
    assert backends.choose_backend("auto", MODEL) == backends.Choice("cpu", "the fastest on a CPU")
    chosen = backends.choose_backend("auto", AttentionSpec(MODEL.device, torch.float16, 128, 4))
    assert chosen == backends.Choice("torch", "not cpu: dtype float16: needs float32 or bfloat16")
    chosen = backends.choose_backend("auto", AttentionSpec(MODEL.device, torch.float32, 72, 4))
    assert chosen.name == "torch" and chosen.reason.startswith("not cpu: head dimension 72: compiled for ")
    monkeypatch.setattr(choice, "host_library", compilers.gxx)
    monkeypatch.setenv("PATH", "")
    chosen = backends.choose_backend("auto", MODEL)
    assert chosen.name == "torch" and chosen.reason.startswith("not cpu: no g++ on PATH: install it")


@pytest.mark.parametrize(
    ("kernel", "changes", "message"),
    [
        ("cuda", {"dtype": torch.float32}, "kernel=cuda: dtype float32: needs bfloat16 or float16"),
        ("flash_attn", {"dtype": torch.float32}, "kernel=flash_attn: dtype float32: needs bfloat16 or float16"),
        ("cuda", {"head_dim": 72}, "kernel=cuda: head dimension 72: compiled for 64, 80, 96, 128, 256"),
        ("flash_attn", {"head_dim": 260}, "kernel=flash_attn: head dimension 260: flash-attention needs a multiple of"),
        ("paged", {}, f"kernel=paged: must be one of auto, {', '.join(backends.NAMES)}"),
    ],
)
def test_a_kernel_that_cannot_run_says_what_is_missing(gpu, kernel, changes, message):
    with pytest.raises(ValueError) as info:
        backends.choose_backend(kernel, gpu.use(**changes))
    assert str(info.value).startswith(message)


def test_a_kernel_on_the_wrong_machine_says_what_is_missing(gpu):
    gpu.compiles(RuntimeError("compiling decode.cu failed"))
    with pytest.raises(ValueError, match="kernel=cuda: compiling decode.cu failed"):
        backends.choose_backend("cuda", gpu.use())
    gpu.capability(7, 5)
    with pytest.raises(ValueError, match="kernel=cuda: NVIDIA H200 has compute capability 7.5; 8.0 is needed"):
        backends.choose_backend("cuda", gpu.use())
    gpu.patch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.patch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match="kernel=flash_attn: torch finds no GPU"):
        backends.choose_backend("flash_attn", gpu.use())
    with pytest.raises(ValueError, match="kernel=cpu: needs a CPU, but the model is on device=cuda"):
        backends.choose_backend("cpu", gpu.use())
    with pytest.raises(ValueError, match="kernel=cuda: needs an NVIDIA GPU, but the model is on device=cpu"):
        backends.choose_backend("cuda", MODEL)
    assert backends.choose_backend("sdpa", MODEL) == backends.Choice("sdpa", "as configured")


def test_listing_compiles_nothing(gpu, monkeypatch):
    gpu.compiles(AssertionError("compiled"))
    monkeypatch.setattr(build, "cached", lambda capability: None)
    assert backends.unmet_requirement("cuda", gpu.use()) is None
