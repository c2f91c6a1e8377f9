"""Float32 products by oneDNN: the same numbers, where they are faster and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import profile

from kvbench.engine import products_cpu
from kvbench.engine.products_cpu import fast_products, is_faster

needs_product = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no product of oneDNN, so the engine keeps torch's own, as another test shows",
)
IDS = torch.zeros(1, 1, dtype=torch.long)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_cpu, "is_faster", lambda: True)


def calls(run: object) -> int:
    """Return how many products oneDNN computed."""
    with profile() as seen:
        assert callable(run)
        run()
    return sum(event.count for event in seen.key_averages() if event.key == "mkldnn::_linear_pointwise")


@needs_product
@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (7, 33), (2, 3, 5)])
def test_products_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(96, 130, bias=bias)
    x = torch.randn(*shape, 96)
    with torch.inference_mode():
        exact = F.linear(x.double(), module.weight.double(), None if module.bias is None else module.bias.double())
        with fast_products(IDS):
            assert calls(lambda: module(x)) == 1
            out = module(x)
        assert calls(lambda: module(x)) == 0  # outside it is torch again
    assert out.dtype == torch.float32 and out.shape == exact.shape
    torch.testing.assert_close(out, exact.float(), rtol=1e-5, atol=1e-5)


@needs_product
@pytest.mark.usefixtures("faster")
def test_weights_of_other_layouts_and_types_are_right_as_well() -> None:
    torch.manual_seed(0)
    x, wide = torch.randn(5, 2 * 96)[:, ::2], torch.randn(96, 130)
    with torch.inference_mode(), fast_products(IDS):
        torch.testing.assert_close(F.linear(x, wide.T), x @ wide, rtol=1e-5, atol=1e-5)
        half = F.linear(x.bfloat16(), wide.T.bfloat16())
        assert half.dtype == torch.bfloat16
        assert calls(lambda: F.linear(x.double(), wide.T.double())) == 0
        torch.testing.assert_close(F.linear(x, weight=wide.T), x @ wide, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(F.linear(x[0], wide.T), x[0] @ wide, rtol=1e-5, atol=1e-5)


@needs_product
@pytest.mark.usefixtures("faster")
def test_tokens_on_another_device_are_left_to_torch() -> None:
    module = nn.Linear(32, 32)
    for device, count in (("cpu", 1), ("meta", 0)):
        with torch.inference_mode(), fast_products(IDS.to(device)):
            assert calls(lambda: module(torch.randn(1, 32))) == count


@needs_product
@pytest.mark.usefixtures("faster")
def test_an_error_inside_ends_it_too() -> None:
    with pytest.raises(RuntimeError, match="inside"), fast_products(IDS):
        raise RuntimeError("inside")
    with torch.inference_mode():
        assert calls(lambda: F.linear(torch.randn(5, 8), torch.randn(8, 8))) == 0


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str, str, bool], bool]]:
    """Return a function from a processor, and whether torch has the product, to what the engine chooses."""

    def chosen(capability: str, cpu: str, has_product: bool) -> bool:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**({"_linear_pointwise": 0} if has_product else {})))
        monkeypatch.setattr(products_cpu, "CPU", tmp_path / "cpuinfo")
        if cpu:
            (tmp_path / "cpuinfo").write_text(cpu)
        is_faster.cache_clear()
        return is_faster()

    yield chosen
    is_faster.cache_clear()


@pytest.mark.parametrize(
    ("capability", "cpu", "has_product", "expected"),
    [
        ("AVX512", "vendor_id : AuthenticAMD", True, True),
        ("AVX512", "vendor_id : AuthenticAMD", False, False),
        ("AVX512", "vendor_id : GenuineIntel", True, False),
        ("AVX512", "", True, False),  # nothing is known about the processor
        ("AVX2", "vendor_id : AuthenticAMD", True, False),
        ("DEFAULT", "CPU implementer : 0x41", True, False),
    ],
)
def test_it_is_used_where_mkl_has_half_of_the_width(
    processor: Callable[[str, str, bool], bool], capability: str, cpu: str, has_product: bool, expected: bool
) -> None:
    assert processor(capability, cpu, has_product) is expected
