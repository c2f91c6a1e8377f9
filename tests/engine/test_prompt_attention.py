"""The log-sum-exp of the prefill's attention: right numbers, equal outputs, and no operation that computes others."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvbench.engine import prompt_attention
from kvbench.engine.prompt_attention import attend_with_lse
from kvbench_kernels.backends import cpu

SCALING = 0.2
ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_attention, "_usable", {})


def prompt(dtype: torch.dtype = torch.bfloat16, tokens: int = 300, heads: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Draw queries, keys and values of a prompt with two KV heads, as the views that a model gives."""
    g = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, tokens, n, 64, generator=g).to(dtype).transpose(1, 2) for n in (heads, 2, 2))
    return q, k, v


def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what the prefill computes without the log-sum-exp."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, scale=SCALING, enable_gqa=True)


def exact_lse(q: Tensor, k: Tensor) -> Tensor:
    logits = q.double() @ k.double().repeat_interleave(q.shape[1] // 2, 1).mT * SCALING
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -torch.inf).logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("heads", [2, 6])
def test_the_output_is_the_same_to_the_bit(dtype: torch.dtype, heads: int) -> None:
    for tokens in (2, 33, 300):
        q, k, v = prompt(dtype, tokens, heads)
        out, lse = attend_with_lse(q, k, v, SCALING)
        assert torch.equal(out, expected(q, k, v))
        assert lse is not None and lse.dtype == torch.float32
        torch.testing.assert_close(lse.double(), exact_lse(q, k), rtol=2e-4, atol=2e-4)


def test_what_torch_does_otherwise_has_no_log_sum_exp() -> None:
    q, k, v = prompt()
    with sdpa_kernel(SDPBackend.MATH):
        out, lse = attend_with_lse(q, k, v, SCALING)
        assert lse is None and torch.equal(out, expected(q, k, v))
    single = [x[:, :, :1] for x in (q, k, v)]
    out, lse = attend_with_lse(*single, SCALING)
    assert lse is None and torch.equal(out, expected(*single))


def other_base(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse / torch.log(torch.tensor(2.0))


def other_output(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out * 1.01, lse


def other_shape(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse[:, :, :-1]


def no_numbers(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, torch.full_like(lse, torch.nan)


def refusal(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no such argument\nat line 3")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (other_base, "returns a log-sum-exp that is off by "),
        (other_output, "has another output than scaled_dot_product_attention"),
        (other_shape, "returns a log-sum-exp of torch.float32, [1, 6, 159]"),
        (no_numbers, "returns a log-sum-exp that is off by nan"),
        (refusal, "cannot be called: no such argument"),
    ],
)
def test_an_operation_that_differs_is_not_used(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, calls = getattr(torch.ops.aten, ON_CPU), []

    def operation(*arguments: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        calls.append(arguments[0].shape[2])
        return change(*real(*arguments, scale=scale))

    q, k, v = prompt()
    right = expected(q, k, v)
    monkeypatch.setattr(torch.ops.aten, ON_CPU, operation)
    caplog.set_level(logging.INFO, prompt_attention.log.name)
    for _ in range(3):
        out, lse = attend_with_lse(q, k, v, SCALING)
        assert lse is None and torch.equal(out, right)
    assert calls == [160]  # once, on the beginning of the prompt
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"scores compute the log-sum-exp themselves, because {ON_CPU} {word}")
    assert "\n" not in message


def test_the_operation_of_cudnn_is_asked_for_the_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns the log-sum-exp with a dimension more."""
    real = getattr(torch.ops.aten, ON_CPU)

    def cudnn(q, k, v, bias, compute_log_sumexp, dropout, is_causal, *, scale):  # type: ignore[no-untyped-def]
        assert (bias, compute_log_sumexp, dropout, is_causal) == (None, True, 0.0, True)
        out, lse = real(q, k, v, 0.0, True, scale=scale)
        return out, lse[..., None], None, None, 1, 1, None, None, None

    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_, **__: int(SDPBackend.CUDNN_ATTENTION.value))
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", cudnn)
    q, k, v = prompt()
    out, lse = attend_with_lse(q, k, v, SCALING)
    assert torch.equal(out, expected(q, k, v)) and lse is not None
    torch.testing.assert_close(lse.double(), exact_lse(q, k), rtol=2e-4, atol=2e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_log_sum_exp_on_the_gpu(dtype: torch.dtype) -> None:
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        q, k, v = (x.to("cuda") for x in prompt(dtype, 3000))
        with sdpa_kernel(backend):
            out, lse = attend_with_lse(q, k, v, SCALING)
            assert torch.equal(out, expected(q, k, v))
        assert lse is not None, backend
        torch.testing.assert_close(lse.double().cpu(), exact_lse(q.cpu(), k.cpu()), rtol=2e-4, atol=2e-4)


@pytest.mark.gxx
def test_our_own_attention_of_a_cpu_is_used_where_torchs_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes float32 prompts of several tokens, one at a time; torch does the rest, to the bit."""
    host = cpu.CpuBackend().sums
    for faster in (True, False):
        monkeypatch.setattr(prompt_attention, "is_faster", lambda faster=faster: faster)
        q, k, v = prompt(torch.float32)
        out, lse = attend_with_lse(q, k, v, SCALING, True, host)
        assert lse is not None and out.shape == q.shape
        assert torch.equal(out, expected(q, k, v)) is not faster
        torch.testing.assert_close(out, expected(q, k, v), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse.double(), exact_lse(q, k), rtol=1e-5, atol=1e-5)
        rest = [prompt(torch.bfloat16), [x[:, :, :1] for x in (q, k, v)], [torch.cat([x, x]) for x in (q, k, v)]]
        for others in rest:
            assert torch.equal(attend_with_lse(*others, SCALING, True, host)[0], expected(*others))
