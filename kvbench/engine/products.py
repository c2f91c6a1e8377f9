"""The products of a decode step's linear modules: those of one input together, and our own kernel for few rows.

`kvb.linear` takes up to 16 rows, one token each, and reads every weight once for all of them. It starts to read weights
while the kernel before it still runs. That is safe: a step begins with kernels of torch, which wait for all earlier
ones, so whatever wrote the weights has ended by then.

Shape suffixes: B rows (one token each), C inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kvbench.engine.products_cpu import fast_products, linear
from kvbench_kernels import ops


class Products:
    """Linear modules of the same input; a call returns the output [B, O] of each.

    They are one product if all are plain. For that, their weights lie one after the other in memory, and may move
    there; their values and modules stay. Other modules are called as they are.
    """

    def __init__(
        self, modules: Sequence[nn.Module], own: bool = True, silu_mul: Callable[..., Tensor] = ops.STEP_OPS.silu_mul
    ) -> None:
        """Prepare the products.

        Args:
            own: use our kernel where it can compute them; False is for comparisons.
            silu_mul: the op that `gated` uses where our kernel cannot.
        """
        self._silu_mul = silu_mul
        self._modules, self._weight_OC, self._bias_O = modules, torch.empty(0), None
        plain = [module for module in modules if type(module) is nn.Linear and not is_changed(module)]
        biases = [module.bias for module in plain if module.bias is not None]
        kinds = {(module.weight.dtype, module.weight.device) for module in plain}
        self._is_one = len(plain) == len(modules) and len(kinds) == 1 and len(biases) in (0, len(plain))
        self._sizes = [module.out_features for module in plain]
        if self._is_one:
            self._weight_OC = _joined([module.weight for module in plain])
            self._bias_O = _joined(biases) if biases else None
        self._is_own = own and self._is_one and ops.takes_weight(self._weight_OC)

    def __call__(self, x_BC: Tensor) -> Sequence[Tensor]:
        if not self._is_one:
            with fast_products(x_BC):
                return [module(x_BC[:, None])[:, 0] for module in self._modules]
        if self._is_own and len(x_BC) <= ops.MOST_TOKENS:
            out_BO = torch.ops.kvb.linear(x_BC, self._weight_OC, self._bias_O, False, True)
        else:
            out_BO = linear(x_BC, self._weight_OC, self._bias_O)
        parts: Sequence[Tensor] = out_BO.split(self._sizes, dim=-1)
        return parts

    def rotated(self, x_BC: Tensor, cos_BD: Tensor, sin_BD: Tensor) -> Sequence[Tensor] | None:
        """Return the output of each module, all but the last one's rotated by head; None if our kernel cannot."""
        dim = cos_BD.shape[1]
        if not self._is_own or len(x_BC) > ops.MOST_TOKENS or any(size % dim for size in self._sizes):
            return None
        if not (cos_BD.is_contiguous() and sin_BD.is_contiguous()):
            return None
        heads = sum(self._sizes[:-1]) // dim
        out_BO = torch.ops.kvb.linear_rope(x_BC, self._weight_OC, self._bias_O, cos_BD, sin_BD, heads, True)
        parts: Sequence[Tensor] = out_BO.split(self._sizes, dim=-1)
        return parts

    def gated(self, x_BC: Tensor) -> Tensor:
        """Return SiLU of the first module's output times the second's."""
        if self._is_own and len(x_BC) <= ops.MOST_TOKENS and self._sizes[0] == self._sizes[1]:
            out_BO: Tensor = torch.ops.kvb.linear(x_BC, self._weight_OC, self._bias_O, True, True)
            return out_BO
        return self._silu_mul(*self(x_BC))


def is_changed(module: nn.Module) -> bool:
    """Return True if calling a module does more than its class says."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


@torch.inference_mode(False)
@torch.no_grad()
def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return one tensor of several, along the first dimension. They become views of it, so nothing is stored twice."""
    first, end = parts[0], parts[0].data_ptr()
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            break
        end += part.nbytes
    else:
        return first.detach().as_strided(shape, first.stride())  # joined before
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([part.shape[0] for part in parts]), strict=True):
        part.data = view
    if whole.is_cuda:
        torch.cuda.empty_cache()  # the old memory is in pieces that the next layer does not fit into
    return whole
