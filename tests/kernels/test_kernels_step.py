"""The small ops of a decode step: they compute what transformers' own modules compute, and round where those round."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from kvbench_kernels import build, ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def own_norm(kind: type[LlamaRMSNorm] | type[Qwen3RMSNorm], weight: Tensor, eps: float) -> LlamaRMSNorm | Qwen3RMSNorm:
    norm = kind(weight.numel(), eps)
    norm.weight.data = weight
    return norm


def step(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of our results and transformers' own."""
    stream, update, weight = (normal(i, *shape, dtype=dtype) for i, shape in enumerate([(5, 96), (5, 96), (96,)]))
    own_sum = stream + update
    pairs = [(torch.ops.kvb.add_rms_norm(stream, update, weight, 1e-5), own_norm(LlamaRMSNorm, weight, 1e-5)(own_sum))]
    pairs += [(stream, own_sum)]
    angle = normal(7, 5, 16, dtype=torch.float32).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    q_weight, k_weight = normal(3, 32, dtype=dtype), normal(4, 32, dtype=dtype)
    for weights in ((None, None), (q_weight, k_weight)):
        q, k = normal(5, 5, 6, 32, dtype=dtype), normal(6, 5, 2, 32, dtype=dtype)
        own = [x if w is None else own_norm(Qwen3RMSNorm, w, 1e-6)(x) for x, w in zip((q, k), weights, strict=True)]
        own_q, own_k = apply_rotary_pos_emb(own[0][:, :, None], own[1][:, :, None], cos[:, None], sin[:, None])
        torch.ops.kvb.rope(q, k, cos, sin, *weights, 1e-6)
        pairs += [(q, own_q[:, :, 0]), (k, own_k[:, :, 0])]
    gate, up = 3 * normal(8, 5, 96, dtype=dtype), normal(9, 5, 96, dtype=dtype)
    return [*pairs, (torch.ops.kvb.silu_mul(gate, up), F.silu(gate) * up)]


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_the_reference_is_what_transformers_computes_bit_for_bit(dtype: torch.dtype) -> None:
    for ours, own in step(dtype):
        assert torch.equal(ours, own)


@pytest.mark.gxx
@pytest.mark.parametrize("dtype", DTYPES[1:])
@torch.no_grad()
def test_the_kernels_round_where_transformers_rounds(dtype: torch.dtype) -> None:
    """Sums in another order may move a result to the next number, which must be rare."""
    with ops.emulated(build.host()):
        for ours, own in step(dtype):
            differs = ours != own
            assert float(differs.float().mean()) < 0.02
            assert torch.allclose(ours.float(), own.float(), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.gxx
def test_a_step_without_rows_is_empty() -> None:
    none = torch.zeros(0, 64, dtype=torch.bfloat16)
    with ops.emulated(build.host()):
        assert torch.ops.kvb.add_rms_norm(none, none.clone(), none.new_ones(64), 1e-5).shape == (0, 64)
        assert torch.ops.kvb.silu_mul(none, none).shape == (0, 64)
        torch.ops.kvb.rope(none[:, None], none[:, None].clone(), none, none, None, None, 1e-6)
