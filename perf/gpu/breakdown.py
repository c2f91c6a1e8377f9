"""Device time of one decode step by families of kernels: 1 row and 16 rows, budget 1024.

    python perf/gpu/breakdown.py [--out FILE.jsonl] [--seconds 20]

An eager step is profiled first. In it, the modules of the model are marked, so that each kernel's module is known:
elementwise kernels of norms, rotary positions and activations have the same names. Then a replayed step is profiled.
A graph runs the same kernels, so a kernel of a name gets the family that the eager step's kernels of this name had, in
their order. The rest of a step's time is gaps between kernels and the host. On a CPU the operators stand for kernels.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from bench import Bench
from step import Case, fill, fitting, load
from stepping import Decoding
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from kvbench.engine import graph
from kvbench.engine.attention import kvbench_attention
from kvbench.engine.caches import make_cache

FAMILIES = ("GEMM", "attention", "append", "norm", "rope", "activation", "copies", "other")
_MARK = "module: "
# A kernel's own name decides, if it can. Otherwise the module that launched it does, and then the second list.
_BY_NAME = (
    ("attention", r"kvb::decode|ragged_append_decode|ragged_decode|flash|fmha|attention"),
    ("append", r"kvb::append|ragged_append"),
    ("GEMM", r"kvb::linear|mkldnn::|gemm|gemv|cutlass|cublas|nvjet|splitk|aten::(addmm|mm|bmm|linear)\b"),
    ("norm", r"rms_?norm|layer_?norm|rsqrt"),
    ("rope", r"rope|rotary"),
    ("activation", r"silu|swiglu|gelu"),
)
_BY_MODULE = (("GEMM", r"^Linear$"), ("norm", r"norm"), ("rope", r"rotary|attention"), ("activation", r"mlp|silu|act"))
_REST = (("copies", r"memcpy|memset|copy|catarray|aten::(cat|clone|contiguous|to)\b"),)


@dataclass(frozen=True)
class Kernel:
    """A kernel that ran, with the innermost marked module that launched it; "" if none did."""

    name: str
    us: float
    module: str = ""


def family(kernel: Kernel) -> str:
    """Return the family of a kernel."""
    return _match(kernel.name, _BY_NAME) or _match(kernel.module, _BY_MODULE) or _match(kernel.name, _REST) or "other"


def _match(text: str, patterns: Sequence[tuple[str, str]]) -> str | None:
    return next((name for name, pattern in patterns if re.search(pattern, text, re.IGNORECASE)), None)


def with_modules(kernels: Sequence[Kernel], eager: Sequence[Kernel]) -> list[Kernel]:
    """Return kernels with the modules that the eager step's kernels of the same name had, in order, repeatedly."""
    modules: Mapping[str, list[str]] = defaultdict(list)
    for kernel in eager:
        modules[kernel.name].append(kernel.module)
    seen: dict[str, int] = defaultdict(int)
    result = []
    for kernel in kernels:
        known = modules.get(kernel.name)
        if known:
            kernel = replace(kernel, module=known[seen[kernel.name] % len(known)])
            seen[kernel.name] += 1
        result.append(kernel)
    return result


def summed(kernels: Sequence[Kernel], steps: int) -> dict[str, dict[str, float]]:
    """Return microseconds and number of kernels of each family, per step."""
    result = {name: {"us": 0.0, "count": 0.0} for name in FAMILIES}
    for kernel in kernels:
        entry = result[family(kernel)]
        entry["us"] += kernel.us / steps
        entry["count"] += 1 / steps
    return {name: entry for name, entry in result.items() if entry["count"]}


def longest(kernels: Sequence[Kernel], steps: int, most: int = 12) -> list[list[Any]]:
    """Return name, family, microseconds and number of the kernels that take longest, per step."""
    by_name: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in kernels:
        by_name[kernel.name[:70], family(kernel)].append(kernel.us)
    order = sorted(by_name, key=lambda key: -sum(by_name[key]))[:most]
    return [[*key, round(sum(by_name[key]) / steps, 2), len(by_name[key]) / steps] for key in order]


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Mark the calls of all modules in a profile with the names of their classes."""
    opened: list[Any] = []

    def begin(module: nn.Module, _: object) -> None:
        mark = record_function(_MARK + type(module).__name__)
        mark.__enter__()
        opened.append(mark)

    def end(*_: object) -> None:
        opened.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(begin).remove)
            hooks.callback(module.register_forward_hook(end).remove)
        yield


def profiled(work: Callable[[], object], device: torch.device) -> Any:
    """Return torch's profile of some work."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as result:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    return result


def launched(profiled_: Any, device: torch.device) -> list[Kernel]:
    """Return the kernels in the order of their launches, with their modules."""
    result = []
    for event in sorted(profiled_.events(), key=lambda event: event.time_range.start):
        if event.device_type != DeviceType.CPU:
            continue
        module = _module(event)
        if device.type == "cuda":
            result += [Kernel(kernel.name, kernel.duration, module) for kernel in event.kernels]
        else:
            result.append(Kernel(event.name, event.self_cpu_time_total, module))
    return [kernel for kernel in result if not kernel.name.startswith(_MARK)]


def ran(profiled_: Any, device: torch.device) -> list[Kernel]:
    """Return the kernels in the order in which they ran."""
    if device.type != "cuda":
        return [replace(kernel, module="") for kernel in launched(profiled_, device)]
    events = [event for event in profiled_.events() if event.device_type == DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    marks = (_MARK, "ProfilerStep")
    return [Kernel(event.name, event.time_range.elapsed_us()) for event in events if not event.name.startswith(marks)]


def _module(event: Any) -> str:
    """Return the class of the innermost marked module around an event; a mark is its own."""
    parent = event
    while parent is not None and not parent.name.startswith(_MARK):
        parent = parent.cpu_parent
    return "" if parent is None else str(parent.name).removeprefix(_MARK)


@torch.inference_mode()
def measure(model: Any, case: Case, bench: Bench) -> None:
    """Fill a cache, profile an eager step and some replayed ones, and record the sums."""
    cache = make_cache(model, "ragged", case.kernel)
    fill(cache, case, model, bench)
    decoding = Decoding(model, cache, case.batch, case.context, bench.device)
    steps, step = 1 if bench.toy else 4, decoding.fused or decoding.call
    eagerly = decoding.eager(step)
    with kvbench_attention(model):
        decoding.take(eagerly, 3)
        with marked(model):
            eager = launched(profiled(lambda: decoding.step(eagerly), bench.device), bench.device)
        recordable = graph.recordable(model, cache, "auto")
        way = eagerly if recordable is None else decoding.recorded(step, recordable)
        took = decoding.take(way, 6 + 2 * steps)
        result = profiled(lambda: decoding.take(way, steps), bench.device)
    kernels, mode = with_modules(ran(result, bench.device), eager), "eager" if recordable is None else "graph"
    if len(kernels) < steps * len(eager) / 2:  # some profilers do not look into graphs
        kernels, mode, steps = eager, "eager", 1
    if not kernels:
        raise ValueError("the profiler saw no kernels")
    families = summed(kernels, steps)
    bench.record(
        what="breakdown",
        **case.about(),
        mode=mode,
        kernel=cache.kernel,
        step_us=1e6 * statistics.median(took[6:]),
        device_us=sum(entry["us"] for entry in families.values()),
        kernels=sum(entry["count"] for entry in families.values()),
        eager_kernels=len(eager),
        families=families,
        longest=longest(kernels, steps),
    )


def main() -> None:
    bench = Bench("breakdown", __doc__)
    model = load(bench.toy)
    chosen = [Case(2, 96, 24)] if bench.toy else [Case(1, 32768, 1024), Case(16, 32768, 1024)]
    for case in fitting(chosen, model, torch.cuda.mem_get_info()[1] if bench.device.type == "cuda" else 1e12):
        if bench.left() < 3 and not bench.toy:
            bench.record(what="breakdown", **case.about(), skipped="no time left")
            continue
        try:
            measure(model, case, bench)
        except Exception as problem:
            bench.record(what="breakdown", **case.about(), missing=bench.survive(problem, "the profile"))
        bench.clean()


if __name__ == "__main__":
    main()
