"""Sums over a prompt on a CPU: drawn cases against double precision, narrow vectors, threads, and planted bugs.

Shape suffixes: H query heads, U KV heads, T tokens, D head dimension, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.methods.base import LayerContext
from kvbench.methods.model_view import ModelView
from kvbench.methods.output_norms import output_norms
from kvbench_kernels.build import cache, compilers, recipes
from kvbench_kernels.ops import library, reference
from kvbench_kernels.ops.host_sums import MOST_DIM, HostSums
from tests.helpers.kernels_prefill import draw, fixed_generator, generator, pick, poisoned, shows, surrounded
from tests.helpers.kernels_sources import copy_sources, unit

pytestmark = pytest.mark.gxx
__all__ = ["poisoned"]  # a fixture
BOUND = 2e-6  # the worst of 2400 drawn cases had 9e-7
TOKENS = (1, 3, 4, 5, 31, 63, 64, 65, 127, 130, 255, 257, 700)


@dataclass(frozen=True)
class Case:
    """A prompt, next to memory that belongs to others, and the weights of an output projection [H, D, E]."""

    q_HTD: Tensor
    k_UTD: Tensor
    v_UTD: Tensor
    weight_HDE: Tensor
    lse_HT: Tensor

    @property
    def scaling(self) -> float:
        return float(self.q_HTD.shape[2] ** -0.5)

    def sums(self, host: HostSums) -> Tensor:
        sums_HT = host.column_sums(self.q_HTD, self.k_UTD, scaling=self.scaling, lse_HT=self.lse_HT.float())
        assert sums_HT is not None
        return sums_HT

    def weights(self, host: HostSums, queries: int) -> Tensor:
        q_HQD, lse_HQ = self.q_HTD[:, -queries:], self.lse_HT[:, -queries:].float()
        weights_HQT = host.query_weights(q_HQD, self.k_UTD, scaling=self.scaling, lse_HQ=lse_HQ)
        assert weights_HQT is not None
        return weights_HQT

    def norms(self, host: HostSums) -> Tensor:
        norms_HT = host.output_norms(self.k_UTD, self.weight_HDE)
        assert norms_HT is not None
        return norms_HT

    def attention(self, host: HostSums) -> tuple[Tensor, Tensor]:
        outcome = host.attention(self.q_HTD, self.k_UTD, self.v_UTD, self.scaling)
        assert outcome is not None
        return outcome

    def exact(self) -> tuple[Tensor, Tensor]:
        """Return the weights [H, T, T], and as much of each as one unit of the error is relative to.

        A weight's relative error is the error of its exponent, a sum that may be much smaller than its terms.
        """
        q_HTD, k_HTD = self.q_HTD.double(), self.k_UTD.double().repeat_interleave(len(self.q_HTD) // len(self.k_UTD), 0)
        logits_HTT, terms_HTT = (x @ y.mT * self.scaling for x, y in ((q_HTD, k_HTD), (q_HTD.abs(), k_HTD.abs())))
        later_TT = torch.ones_like(logits_HTT[0], dtype=torch.bool).triu(1)
        weights_HTT = logits_HTT.masked_fill(later_TT, -torch.inf).softmax(-1)
        return weights_HTT, weights_HTT * (1 + terms_HTT / 4 + self.lse_HT[..., None].abs() / 4)

    def error_of_sums(self, host: HostSums) -> float:
        weights_HTT, size_HTT = self.exact()
        return _error(self.sums(host), weights_HTT.sum(1), size_HTT.sum(1))

    def error_of_weights(self, host: HostSums, queries: int) -> float:
        exact_HQT, size_HQT = (x[:, -queries:] for x in self.exact())
        own_HQT = self.weights(host, queries)
        seen_HQT = torch.ones_like(own_HQT[0], dtype=torch.bool).tril(own_HQT.shape[2] - queries).expand_as(own_HQT)
        if own_HQT[~seen_HQT].count_nonzero():
            return float("inf")
        return _error(own_HQT[seen_HQT], exact_HQT[seen_HQT], size_HQT[seen_HQT])

    def worst(self, host: HostSums) -> float:
        of_weights = [self.error_of_weights(host, min(n, self.q_HTD.shape[1])) for n in (1, 6, 64, 130)]
        errors = [self.error_of_sums(host), self.error_of_norms(host), *of_weights, *self.errors_of_attention(host)]
        return max(errors) if all(error == error for error in errors) else float("inf")

    def errors_of_attention(self, host: HostSums) -> tuple[float, float]:
        """Return the error of the outputs, and that of the log-sum-exp."""
        weights_HTT, size_HTT = self.exact()
        v_HTD = self.v_UTD.double().repeat_interleave(len(self.q_HTD) // len(self.v_UTD), 0)
        out_HTD, lse_HT = self.attention(host)
        of_lse_HT = size_HTT.sum(-1)  # that of the logits, weighted
        return _error(out_HTD, weights_HTT @ v_HTD, size_HTT @ v_HTD.abs()), _error(lse_HT, self.lse_HT, of_lse_HT)

    def error_of_norms(self, host: HostSums) -> float:
        v_HTD = self.k_UTD.double().repeat_interleave(len(self.q_HTD) // len(self.k_UTD), 0)
        weight_HDE = self.weight_HDE.double()
        size_HT = (v_HTD.abs() @ weight_HDE.abs()).sum(-1)  # an output may be much smaller than its terms
        return _error(self.norms(host), (v_HTD @ weight_HDE).abs().sum(-1), size_HT)


def _error(own_HT: Tensor, exact_HT: Tensor, size_HT: Tensor) -> float:
    error = ((own_HT - exact_HT).abs() / size_HT).max()
    return float("inf") if error.isnan() else float(error)


def drawn(g: torch.Generator, tokens: int = 0, dim: int = 0, outputs: int = 0) -> Case:
    kv_heads, group, tokens = draw(g, 1, 3), draw(g, 1, 4), tokens or pick(g, *TOKENS)
    dim, outputs = dim or pick(g, 8, 64, 80, MOST_DIM), outputs or pick(g, 1, 15, 63, 64, 65, 200)
    sizes = kv_heads * group, kv_heads, kv_heads
    q_HTD, k_UTD, v_UTD = (surrounded(torch.randn(n, tokens, dim, generator=g)) for n in sizes)
    room = torch.full((outputs + 1, kv_heads * group * dim), torch.nan)  # as a linear layer holds its weights
    room[:outputs] = torch.randn(outputs, kv_heads * group * dim, generator=g)
    weight_HDE = room[:outputs].t().view(kv_heads * group, dim, outputs)
    lse_HT = reference.row_lse(q_HTD.double(), k_UTD.double(), dim**-0.5)
    return Case(q_HTD, k_UTD, v_UTD, weight_HDE, lse_HT)


@pytest.fixture(scope="module")
def host() -> HostSums:
    return HostSums(library.load(cache.built(recipes.cpu(recipes.vector_flags()))))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("offset", range(24))
def test_drawn_cases_against_double_precision(host: HostSums, offset: int) -> None:
    case = drawn(generator(600 + offset))
    assert case.worst(host) < BOUND, (case.q_HTD.shape, case.k_UTD.shape, case.weight_HDE.shape)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-march=x86-64-v3", "-O1"), ("-march=x86-64-v2", "-O1")], ids=["8", "4"])
def test_narrower_vectors_against_double_precision(flags: tuple[str, ...]) -> None:
    narrow = HostSums(library.load(cache.built(recipes.cpu(flags))))
    for offset in range(8):
        assert drawn(generator(630 + offset)).worst(narrow) < BOUND


def test_a_long_prompt_adds_up_without_drift(host: HostSums) -> None:
    """Small weights are added to each other before they meet a large sum."""
    g = generator(640)
    q_HTD, k_UTD = (0.01 * torch.randn(1, 30_000, 8, generator=g) for _ in range(2))
    lse_HT = torch.arange(1, 30_001)[None].double().log() + 0.001  # about that of equal logits
    exact_HT = reference.column_sums(q_HTD.double(), k_UTD.double(), lse_HT, 1.0)
    sums_HT = host.column_sums(q_HTD, k_UTD, scaling=1.0, lse_HT=lse_HT.float())
    assert sums_HT is not None
    assert _error(sums_HT, exact_HT, exact_HT) < 2 * BOUND


def test_a_result_does_not_depend_on_threads(host: HostSums) -> None:
    case, before, results = drawn(generator(641), tokens=700), torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            out_HTD, lse_HT = case.attention(host)
            rows = [case.sums(host), case.norms(host), lse_HT, *case.weights(host, 9).unbind(1), *out_HTD.mT.unbind(1)]
            results.append(torch.cat(rows))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_torch_computes_what_the_functions_do_not_take(host: HostSums) -> None:
    case = drawn(generator(642), tokens=5, dim=64)
    q, k, lse = case.q_HTD, case.k_UTD, case.lse_HT.float()
    assert host.column_sums(q, k, scaling=1.0) is None  # without the log-sum-exp
    assert host.column_sums(q.double(), k.double(), scaling=1.0, lse_HT=lse) is None
    assert host.column_sums(q.bfloat16(), k.bfloat16(), scaling=1.0, lse_HT=lse) is None
    wide = torch.randn(1, 3, MOST_DIM + 8)
    assert host.column_sums(wide, wide, scaling=1.0, lse_HT=torch.zeros(1, 3)) is None
    assert host.attention(q.double(), k.double(), k.double(), 1.0) is None
    assert host.attention(wide, wide, wide, 1.0) is None
    assert host.attention(q, k, k[:, :, 8:], 1.0) is None  # values of another dimension
    assert host.attention(q[:, 1:], k, k, 1.0) is None
    assert host.query_weights(q, k, scaling=1.0) is None
    assert host.query_weights(q.double(), k.double(), scaling=1.0, lse_HQ=lse) is None
    assert host.output_norms(k, case.weight_HDE.contiguous()) is None or case.weight_HDE.shape[2] == 1
    assert host.output_norms(k, case.weight_HDE.double()) is None


class _Model(ModelView):
    def __init__(self, weight_HDE: Tensor) -> None:
        self._weight_HDE = weight_HDE

    def o_proj(self, layer: int) -> Tensor:
        return self._weight_HDE


def test_a_context_gives_what_torch_gives(host: HostSums, monkeypatch: pytest.MonkeyPatch) -> None:
    case = drawn(generator(643), tokens=300, dim=64, outputs=200)
    monkeypatch.setattr(LayerContext, "model", property(lambda self: _Model(case.weight_HDE)))
    ours, plain = (
        LayerContext(case.q_HTD, case.k_UTD, case.k_UTD, sums=sums, lse_HT=case.lse_HT.float()) for sums in (host, None)
    )
    torch.testing.assert_close(ours.column_sums(), plain.column_sums(), rtol=1e-5, atol=0)
    torch.testing.assert_close(output_norms(ours), output_norms(plain), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.window_attention(7), plain.window_attention(7), rtol=1e-5, atol=0)
    for (_, _, own), (_, _, torchs) in zip(ours.rows(11), plain.rows(11), strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-5, atol=0)
    calls: list[int] = []
    monkeypatch.setattr(HostSums, "column_sums", lambda self, *_, **__: calls.append(1))  # returns None
    monkeypatch.setattr(HostSums, "output_norms", lambda self, *_: calls.append(1))
    monkeypatch.setattr(HostSums, "query_weights", lambda self, *_, **__: calls.append(1))
    again = LayerContext(case.q_HTD, case.k_UTD, case.k_UTD, sums=host, lse_HT=case.lse_HT.float())
    assert torch.equal(again.window_attention(7), plain.window_attention(7))
    assert torch.equal(output_norms(again), output_norms(plain))
    assert torch.equal(again.column_sums(), plain.column_sums())
    assert len(calls) == 4  # sums need the weights of one block


def test_logits_far_from_zero_neither_overflow_nor_vanish(host: HostSums) -> None:
    """Keys of later tiles have much larger and much smaller logits than those before."""
    q_HTD, (k_UTD, v_UTD) = torch.ones(2, 300, 8), torch.randn(2, 1, 300, 8, generator=generator(644))
    for sign in (1, -1):
        keys_UTD = k_UTD + sign * torch.arange(300)[:, None] / 2
        outcome = host.attention(q_HTD, keys_UTD, v_UTD, 1.0)
        assert outcome is not None
        wide = q_HTD.double(), *(x_UTD.double().expand(2, -1, -1) for x_UTD in (keys_UTD, v_UTD))
        exact_HTD = F.scaled_dot_product_attention(*wide, is_causal=True, scale=1.0)
        assert float((outcome[0] - exact_HTD).abs().max()) < 2e-3  # logits of 1200 in float32
        exact_HT = reference.row_lse(q_HTD.double(), keys_UTD.double(), 1.0)
        torch.testing.assert_close(outcome[1].double(), exact_HT, rtol=1e-6, atol=1e-3)


NAMES = ("cpu_column_sums.cpp", "cpu_output_norms.cpp", "cpu_query_weights.cpp", "cpu_attention.cpp")
BUGS = {
    "j < count ? rows[j * stride + d] * factor : 0": "rows[j * stride + d] * factor",
    "end - at < AT_ONCE ? end - at : AT_ONCE": "AT_ONCE",
    "logit[i][v] - lse[i] * LOG2_E": "logit[i][v] - lse[0] * LOG2_E",
    "<= static_cast<int32_t>(ahead + i) ? weight": "< static_cast<int32_t>(ahead + i) ? weight",
    "if (ahead < WIDTH - 1)\n        weigh": "if (ahead < WIDTH / 2)\n        weigh",
    "if (ahead < WIDTH - 1)\n                    logits": "if (ahead < WIDTH / 2)\n                    logits",
    "weigh(rows, lse + at, tile, dim, at - first,": "weigh(rows, lse + at, tile, dim, at,",
    "tokens - queries + at - first;": "tokens - queries + at;",
    "h * queries * tokens + first;": "h * queries * tokens;",
    "std::memcpy(out + (at + i) * tokens, row,": "std::memcpy(out + at * tokens, row,",
    "for (int64_t h = u * group; h < (u + 1) * group; h++)": "for (int64_t h = 0; h < group; h++)",
    "std::memset(part, 0, sizeof part);": "",
    "call->k.data) + h / group * call->k.stride_0": "call->k.data) + h % call->kv_heads * call->k.stride_0",
    "call->v.data) + h / group * call->v.stride_0": "call->v.data) + h % call->kv_heads * call->v.stride_0",
    "return x < 0 ? -x : x;": "return x;",
    "store(to, load(to) + size);": "store(to, size);",
    "float* to = norm + (at - begin + i) * LANES;": "float* to = norm + (at - begin) * LANES;",
    "left < WIDTH ? left : WIDTH": "WIDTH",
    "for (int j = 0; j < LANES; j++) all +=": "for (int j = 1; j < LANES; j++) all +=",
    "load(out[i] + v * LANES) * scale[i]": "load(out[i] + v * LANES)",
    "weights[i * WIDTH + j] * row[v]": "weights[j] * row[v]",
    "total[i] = total[i] * scale[i] + sum(all);": "total[i] += sum(all);",
    "<= static_cast<int32_t>(ahead + i) ? logit": "< static_cast<int32_t>(ahead + i) ? logit",
    "Vec tops = Vec{} + top[i];": "Vec tops = Vec{} - 1e30f;",
    "(stride - d) / LANES": "VECS",
    "for (int64_t t = 0; t * WIDTH < end; t++) {": "for (int64_t t = 0; t * WIDTH < begin; t++) {",
    "if (t * WIDTH < at + AT_ONCE) {": "if (t * WIDTH < at) {",
    "all[(at - begin) / AT_ONCE].add(rows": "all[0].add(rows",
    "at - t * WIDTH);": "at - t * WIDTH + 1);",
    "u * call->k.stride_0 + first * call->k.stride_1": "u * call->k.stride_0",
    "u * call->v.stride_0 + first * call->v.stride_1": "u * call->v.stride_1 + first * call->v.stride_1",
    "std::memset(rows, 0, sizeof(float) * WIDTH * wide);": "",
    "const int i = (at - begin) % AT_ONCE;": "const int i = (at - begin) % 2;",
    "std::log2(running.total[i])) * LN_2": "std::log2(running.total[i]))",
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("right", BUGS)
def test_planted_bugs_are_found(right: str, tmp_path: Path) -> None:
    """The cases have parts of a tile, of a block and of the rows at once, and more than one of each."""
    copy = copy_sources(tmp_path, right, BUGS[right])
    units = [unit(copy, name) for name in NAMES]
    out = tmp_path / "wrong.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-fopenmp", "-Wno-psabi", "-march=x86-64-v3", "-shared", "-I", str(copy)]
    compilers.run([compilers.gxx(), *flags, *units, "-o", out], "a planted bug")
    wrong = HostSums(library.Library(out))
    g = fixed_generator(650)
    sizes = ((1, 64, 1), (70, 64, 65), (333, 24, 200), (700, 64, 15))
    cases = [drawn(g, tokens, dim, outputs) for tokens, dim, outputs in sizes]
    assert shows(lambda: any(case.worst(wrong) >= BOUND for case in cases))
