"""The op `packed_decode`: its reference in torch, and the checks of its arguments.

Shape suffixes: B batch rows, H query heads, U KV heads, G = H / U, T new tokens, N lanes (b * U + u), R plain slots,
M tokens, D head dimension, C channels of encoded keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops import require

BITS = (0, 2, 4, 8)


def packed_decode(
    q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_codes: Tensor, k_scale: Tensor, k_low: Tensor, k_plain_RD: Tensor,
    v_codes: Tensor, v_scale: Tensor, v_low: Tensor, v_plain_RD: Tensor, k_channel_NC: Tensor | None, place_N6: Tensor,
    count_N3: Tensor, k_bits: int, v_bits: int, most: int, scaling: float, out_BHTD: Tensor,
) -> None:  # fmt: skip
    """Attend to the stored tokens of every lane and, causally, to its T new ones; fill `out_BHTD`.

    A lane's tokens are counted by age: the stored ones, then the new ones. The oldest are encoded: code * scale + low.

    Args:
        k_codes, k_scale, k_low: blocks of tokens: packed codes [blocks, C, bytes], and [blocks, C].
        v_codes, v_scale, v_low: tokens: packed codes [tokens, groups, bytes], and [tokens, groups].
        k_channel_NC: int16, the channels that encoded keys of each lane have; the others are 0. None for all D.
        place_N6: of keys and of values, first block, first plain slot, plain slots. Token `age` is plain in slot
            first + age % slots.
        count_N3: stored tokens, encoded keys, encoded values.
        k_bits, v_bits: bits of a code; 0 if nothing is encoded.
        most: largest number of tokens of a lane, the new ones included. The reference does not use it.
    """
    _, heads, tokens, _ = q_BHTD.shape
    kv_heads = k_BUTD.shape[1]
    dtype = torch.float64 if q_BHTD.dtype == torch.float64 else torch.float32
    for lane, ((stored, keys, values), place) in enumerate(zip(count_N3.tolist(), place_N6.tolist(), strict=True)):
        row, head = divmod(lane, kv_heads)
        k_MD = v_MD = k_plain_RD[:0].to(dtype)
        if keys:
            group = k_codes.shape[2] * 8 // k_bits
            blocks = slice(place[0], place[0] + keys // group)
            codes = unpack(k_codes[blocks], k_bits).to(dtype)
            k_NDB = codes * k_scale[blocks].to(dtype)[..., None] + k_low[blocks].to(dtype)[..., None]
            k_MD = k_NDB.transpose(1, 2).flatten(0, 1)
            if k_channel_NC is not None:
                channel_MC = k_channel_NC[lane].long().expand(len(k_MD), -1)
                k_MD = k_MD.new_zeros(len(k_MD), q_BHTD.shape[3]).scatter_(1, channel_MC, k_MD)
        if values:
            of_lane = slice(place[3], place[3] + values)
            codes = unpack(v_codes[of_lane], v_bits).to(dtype)
            v_MD = (codes * v_scale[of_lane].to(dtype)[..., None] + v_low[of_lane].to(dtype)[..., None]).flatten(1)
        k_plain, v_plain = (
            plain_RD[first + torch.arange(encoded, stored, device=plain_RD.device) % max(slots, 1)].to(dtype)
            for plain_RD, encoded, first, slots in ((k_plain_RD, keys, *place[1:3]), (v_plain_RD, values, *place[4:]))
        )
        k_MD = torch.cat([k_MD, k_plain, k_BUTD[row, head].to(dtype)])
        v_MD = torch.cat([v_MD, v_plain, v_BUTD[row, head].to(dtype)])
        q_GTD = q_BHTD[row].unflatten(0, (kv_heads, -1))[head].to(dtype)
        hidden_TM = torch.ones(tokens, len(k_MD), dtype=torch.bool, device=k_MD.device).triu_(stored + 1)
        weights_GTM = (q_GTD @ k_MD.T * scaling).masked_fill(hidden_TM, -torch.inf).softmax(-1)
        group = heads // kv_heads
        out_BHTD[row, head * group : (head + 1) * group] = (weights_GTM @ v_MD).to(out_BHTD.dtype)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes in packed bytes, the first in the lowest bits."""
    parts = [(packed >> (bits * index)) & (2**bits - 1) for index in range(8 // bits)]
    return torch.stack(parts, -1).flatten(-2)


def check(
    q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_codes: Tensor, k_scale: Tensor, k_low: Tensor, k_plain_RD: Tensor,
    v_codes: Tensor, v_scale: Tensor, v_low: Tensor, v_plain_RD: Tensor, k_channel_NC: Tensor | None, place_N6: Tensor,
    count_N3: Tensor, k_bits: int, v_bits: int, most: int, scaling: float, out_BHTD: Tensor, *, compiled: bool,
) -> None:  # fmt: skip
    """Check the arguments of `packed_decode`. Raises ValueError."""
    if q_BHTD.dim() != 4 or k_BUTD.dim() != 4 or k_BUTD.shape[::3] != q_BHTD.shape[::3]:
        raise ValueError("k_BUTD: must be [rows of q_BHTD, KV heads, new tokens, head dimension of q_BHTD]")
    if q_BHTD.shape[2] != k_BUTD.shape[2] or q_BHTD.shape[1] % k_BUTD.shape[1]:
        raise ValueError("q_BHTD: must have the tokens of k_BUTD, and as many heads for each KV head")
    dim, lanes = q_BHTD.shape[3], k_BUTD.shape[0] * k_BUTD.shape[1]
    for name, x, other in (("v_BUTD", v_BUTD, k_BUTD), ("out_BHTD", out_BHTD, q_BHTD)):
        if x.shape != other.shape:
            raise ValueError(f"{name}: must have the shape of {'k_BUTD' if name == 'v_BUTD' else 'q_BHTD'}")
    for name, x in (("v_BUTD", v_BUTD), ("k_BUTD", k_BUTD), ("out_BHTD", out_BHTD)):
        require.alike(name, x, q_BHTD)
    require.shaped("place_N6", place_N6, (lanes, 6), torch.int32, q_BHTD)
    require.shaped("count_N3", count_N3, (lanes, 3), torch.int32, q_BHTD)
    channels = dim
    if k_channel_NC is not None:
        channels = k_channel_NC.shape[-1]
        require.shaped("k_channel_NC", k_channel_NC, (lanes, min(channels, dim)), torch.int16, q_BHTD)
    _half("k", k_codes, k_scale, k_low, k_plain_RD, k_bits, q_BHTD, groups=channels)
    groups = dim * v_bits // (8 * v_codes.shape[2]) if v_bits and v_codes.dim() == 3 and v_codes.shape[2] else 0
    _half("v", v_codes, v_scale, v_low, v_plain_RD, v_bits, q_BHTD, groups=groups)
    if v_bits and groups * v_codes.shape[2] * 8 != dim * v_bits:
        raise ValueError("v_codes: groups must divide the head dimension")
    if compiled:
        require.sixteen_bit("q_BHTD", q_BHTD)
        if dim > 256:
            raise ValueError(f"q_BHTD: has head dimension {dim}; the kernels take up to 256")
        for name, x in (("q_BHTD", q_BHTD), ("k_BUTD", k_BUTD), ("v_BUTD", v_BUTD), ("out_BHTD", out_BHTD)):
            require.steps(name, x)


def _half(
    name: str, codes: Tensor, scale: Tensor, low: Tensor, plain_RD: Tensor, bits: int, like: Tensor, groups: int
) -> None:
    """Require the buffers of keys or values; those of encoded tokens only if there are any."""
    if bits not in BITS:
        raise ValueError(f"{name}_bits={bits}: must be one of {', '.join(map(str, BITS))}")
    if plain_RD.dim() != 2 or plain_RD.shape[1] != like.shape[3] or not plain_RD.is_contiguous():
        raise ValueError(f"{name}_plain_RD: must be contiguous, [slots, head dimension of q_BHTD]")
    require.alike(f"{name}_plain_RD", plain_RD, like)
    if bits:
        if codes.dim() != 3 or codes.dtype != torch.uint8 or codes.shape[1] != groups or not codes.is_contiguous():
            raise ValueError(f"{name}_codes: must be contiguous bytes, [blocks, groups of a block, bytes of a group]")
        for part, x in (("scale", scale), ("low", low)):
            require.shaped(f"{name}_{part}", x, (codes.shape[0], codes.shape[1]), like.dtype, like)
