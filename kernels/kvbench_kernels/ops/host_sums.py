"""Attention and output norms of a prompt on a CPU, by our own C++ (csrc/score/cpu_*.cpp).

Shape suffixes: H query heads, U KV heads, T tokens, Q queries, D head dimension, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops import launch
from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import CPU_DTYPE, row_of, rows_of
from kvbench_kernels.ops.require import rows

MOST_DIM = 256


class HostSums:
    """Functions over a prompt that never write its logits. They return None for torch to do it."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def column_sums(
        self, q_HTD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HT: Tensor | None = None
    ) -> Tensor | None:
        """Return the causal attention that every key receives from all queries, fp32 [H, T].

        None without the log-sum-exp of the logits.
        """
        if lse_HT is None or not _takes(q_HTD, k_UTD, lse_HT):
            return None
        q_HTD, k_UTD, lse_HT = rows(q_HTD), rows(k_UTD), lse_HT.contiguous()
        return launch.column_sums(
            self._library, None, q_HTD, k_UTD, lse_HT, scaling, name="cpu_column_sums", dtypes=CPU_DTYPE
        )

    def query_weights(
        self, q_HQD: Tensor, k_UTD: Tensor, *, scaling: float, lse_HQ: Tensor | None = None
    ) -> Tensor | None:
        """Return the causal attention of the last Q of T tokens, fp32 [H, Q, T].

        None without the log-sum-exp of the logits.
        """
        if lse_HQ is None or not _takes(q_HQD, k_UTD, lse_HQ):
            return None
        q_HQD, k_UTD, lse_HQ = rows(q_HQD), rows(k_UTD), rows(lse_HQ)
        (heads, queries, dim), (kv_heads, tokens, _) = q_HQD.shape, k_UTD.shape
        weights_HQT = q_HQD.new_empty(heads, queries, tokens)
        self._library.call(
            "cpu_query_weights",
            None,
            q=rows_of(q_HQD),
            k=rows_of(k_UTD),
            lse=row_of(lse_HQ),
            out=weights_HQT.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            queries=queries,
            tokens=tokens,
            dim=dim,
            scaling=scaling,
            dtype=CPU_DTYPE[q_HQD.dtype],
        )
        return weights_HQT

    def output_norms(self, v_UTD: Tensor, weight_HDE: Tensor) -> Tensor | None:
        """Return the L1 norm of each token's value times the output weights of each query head, fp32 [H, T].

        None unless the weights of an output are contiguous, as those of a linear layer are.
        """
        weight_HED = weight_HDE.transpose(1, 2)
        if weight_HED.stride(2) != 1 or not _takes(v_UTD, weight_HED):
            return None
        v_UTD = rows(v_UTD)
        (heads, outputs, dim), (kv_heads, tokens, _) = weight_HED.shape, v_UTD.shape
        norms_HT = v_UTD.new_empty(heads, tokens)
        size = self._library.size("cpu_output_norms_workspace", heads, outputs, dim)
        workspace = torch.empty(size, dtype=torch.uint8)
        self._library.call(
            "cpu_output_norms",
            None,
            v=rows_of(v_UTD),
            w=rows_of(weight_HED),
            out=norms_HT.data_ptr(),
            workspace=workspace.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            tokens=tokens,
            dim=dim,
            outputs=outputs,
            dtype=CPU_DTYPE[v_UTD.dtype],
        )
        return norms_HT

    def attention(self, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> tuple[Tensor, Tensor] | None:
        """Return causal attention [H, T, D], and the natural log-sum-exp of every query's logits, fp32 [H, T].

        None if values have another dimension than keys.
        """
        if not _takes(q_HTD, k_UTD, v_UTD) or v_UTD.shape != k_UTD.shape or q_HTD.shape[1:] != k_UTD.shape[1:]:
            return None
        q_HTD, k_UTD, v_UTD = rows(q_HTD), rows(k_UTD), rows(v_UTD)
        (heads, tokens, dim), kv_heads = q_HTD.shape, k_UTD.shape[0]
        out_HTD, lse_HT = q_HTD.new_empty(tokens, heads, dim).transpose(0, 1), q_HTD.new_empty(heads, tokens)
        workspace = torch.empty(
            self._library.size("cpu_prompt_attention_workspace", kv_heads, tokens, dim), dtype=torch.uint8
        )
        self._library.call(
            "cpu_prompt_attention",
            None,
            q=rows_of(q_HTD),
            k=rows_of(k_UTD),
            v=rows_of(v_UTD),
            out=rows_of(out_HTD),
            lse=lse_HT.data_ptr(),
            workspace=workspace.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            tokens=tokens,
            dim=dim,
            scaling=scaling,
            dtype=CPU_DTYPE[q_HTD.dtype],
        )
        return out_HTD, lse_HT


def _takes(*tensors: Tensor) -> bool:
    return all(x.is_cpu and x.dtype == torch.float32 for x in tensors) and tensors[0].shape[-1] <= MOST_DIM
