"""Facts about the hardware that computes a run, as manifests record them."""

from __future__ import annotations

import platform
import re
from collections import Counter
from functools import cache
from pathlib import Path

import torch

_PROCESSORS, _DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")


def hardware(device: str, *, all_gpus: bool = False) -> dict[str, str | int]:
    """Return what is known of a device.

    Args:
        device: cpu, cuda or cuda:N.
        all_gpus: layers are spread over all GPUs.

    Returns:
        `name`, by which people know it: "NVIDIA H200", "2 × NVIDIA H200" or "AMD EPYC 9354, 8 threads". Of GPUs also
        their number `gpus`, and the versions of `cuda` and of the `driver` where these are known; of a CPU torch's
        `threads`.
    """
    if not device.startswith("cuda"):
        threads = torch.get_num_threads()
        return {"name": f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}", "threads": threads}
    gpus = range(torch.cuda.device_count()) if all_gpus else [torch.device(device)]
    counts = Counter(torch.cuda.get_device_properties(gpu).name for gpu in gpus)
    name = " + ".join(gpu if number == 1 else f"{number} × {gpu}" for gpu, number in sorted(counts.items()))
    versions = {"cuda": torch.version.cuda, "driver": _driver()}
    return {"name": name, "gpus": counts.total(), **{key: text for key, text in versions.items() if text}}


@cache
def cpu_name() -> str:
    """Return the model of the CPU, such as "AMD EPYC 9354 32-Core Processor"."""
    name = _first(r"^model name\s*:\s*(.+)$", _PROCESSORS)
    return name or platform.processor() or platform.machine()


@cache
def _driver() -> str | None:
    """Return the version of the GPU's driver, None where the system does not tell."""
    return _first(r"\s(\d+(?:\.\d+)+)\s", _DRIVER)


def _first(pattern: str, file: Path) -> str | None:
    try:
        match = re.search(pattern, file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None
