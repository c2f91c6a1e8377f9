"""`MaskedCache`: every token stays, and evicted tokens are masked. A simulation, and the oracle of the tests.

Deliberately naive: one row at a time, full-length keys and values, explicit softmax. It saves no memory. Its bytes are
those that it allocates; its lengths are those of a ragged cache.

Shape suffixes: B rows, H query heads, U KV heads, G = H / U, T new tokens, N tokens seen, S stored tokens,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.base import Entry, NewTokens, Reads, TokensRead, tokens_read
from kvbench.methods import policy_answers, store_answers
from kvbench.methods.decoding import DecodePolicy, Decoding, Start
from kvbench.methods.looking import Look, chosen_blocks
from kvbench.methods.plan import Plan
from kvbench.methods.sharing import Leaving
from kvbench.methods.slots import Slots, head_draws
from kvbench.methods.storage import Half, Side


@dataclass
class _Row:
    entry: Entry
    layer: int
    k_UND: Tensor
    v_UND: Tensor
    keep_UN: Tensor
    state_UN: Tensor | None  # of the decode policy; one column per token seen
    peak: int  # most tokens that a head held after a step
    encoded: tuple[list[int], list[int]]  # per head, how many keys and values have been encoded, in order of arrival
    reads: Reads  # tokens that query heads read, for a look
    ids: list[int]  # of the tokens after the prompt; -1 where they are unknown


class MaskedCache:
    """A cache with the interface of `RaggedCache` that saves no memory."""

    kernel = "torch"
    prompt = sums = None

    def __init__(self, num_layers: int) -> None:
        self._layers: list[dict[int, _Row]] = [{} for _ in range(num_layers)]

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        for entry in entries:
            keep_UT = entry.keep_UT.clone()
            state_UT = None
            if entry.decoding is not None:
                at_UT = torch.arange(keep_UT.shape[1], device=keep_UT.device).expand_as(keep_UT)
                start = Start(
                    layer, len(self._layers), keep_UT.shape[1], at_UT, keep_UT, entry.score_UT, entry.followed
                )
                state_UT = policy_answers.first_state(entry.decoding.policy, start)
            peak = int(keep_UT.sum(1).max())
            encoded = [0] * len(keep_UT), [0] * len(keep_UT)
            k, v = k_UTD, v_UTD
            if entry.store is not None:
                entry.store.check(k_UTD.shape[-1])
                k, v = k_UTD.clone(), v_UTD.clone()  # encoding changes them
            row = _Row(entry, layer, k, v, keep_UT, state_UT, peak, encoded, Reads(entry.reads_all(layer)), [])
            if entry.decoding is not None and entry.decoding.policy.turns_all:
                _turn(row, torch.ones_like(keep_UT), [range(keep_UT.shape[1])] * len(keep_UT))
            self._layers[layer][entry.row] = row

    def fork(self, layer: int, row: int, copies: Sequence[int]) -> None:
        of_row = self._layers[layer][row]
        for copy in copies:
            entry = replace(of_row.entry, row=copy)
            encoded = list(of_row.encoded[0]), list(of_row.encoded[1])
            k, v = of_row.k_UND.clone(), of_row.v_UND.clone()
            reads, ids = replace(of_row.reads), list(of_row.ids)
            self._layers[layer][copy] = replace(
                of_row, entry=entry, k_UND=k, v_UND=v, encoded=encoded, reads=reads, ids=ids
            )

    def attend(
        self,
        layer: int,
        rows: Sequence[int],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        for i, row in enumerate(rows):
            self._layers[layer][row].ids += [-1] * q_BHTD.shape[2] if new is None else list(new.ids[i])
        return torch.stack(
            [
                self._attend_row(self._layers[layer][row], q_BHTD[i], k_BUTD[i], v_BUTD[i], scaling)
                for i, row in enumerate(rows)
            ]
        )

    def _attend_row(self, row: _Row, q_HTD: Tensor, k_UTD: Tensor, v_UTD: Tensor, scaling: float) -> Tensor:
        tokens = q_HTD.shape[1]
        if row.entry.store is not None:
            _encode_due(row)
        row.k_UND, row.v_UND = k_UND, v_UND = torch.cat([row.k_UND, k_UTD], 1), torch.cat([row.v_UND, v_UTD], 1)
        row.keep_UN = torch.cat([row.keep_UN, row.keep_UN.new_ones(len(row.keep_UN), tokens)], 1)
        seen = row.keep_UN.shape[1]
        causal_TN = torch.ones(tokens, seen, dtype=torch.bool, device=q_HTD.device).tril_(seen - tokens)
        q_UGTD = q_HTD.unflatten(0, (k_UTD.shape[0], -1))
        visible_UGTN = (row.keep_UN[:, None] & causal_TN)[:, None].expand(-1, q_UGTD.shape[1], -1, -1)
        if row.entry.look is not None and tokens == 1:
            visible_UGTN = _looked_at(row, row.entry.look, q_UGTD[:, :, 0])[:, :, None]
            row.reads.count(visible_UGTN.sum(-1))
        logits = torch.einsum("ugtd,und->ugtn", q_UGTD.float(), k_UND.float()) * scaling
        attention = logits.masked_fill(~visible_UGTN, -torch.inf).softmax(-1)
        out_UGTD = torch.einsum("ugtn,und->ugtd", attention.to(v_UND.dtype), v_UND)
        if row.entry.decoding is not None:
            _evict(row, row.entry.decoding, attention)
        row.peak = max(row.peak, int(row.keep_UN.sum(1).max()))
        return out_UGTD.flatten(0, 1)

    def release(self, rows: Sequence[int]) -> None:
        for layer in self._layers:
            for row in rows:
                layer.pop(row, None)

    def compact(self) -> None:
        pass  # `release` has freed the memory

    def lengths(self, row: int) -> list[list[int]]:
        return [layer[row].keep_UN.sum(1).tolist() for layer in self._layers]

    def kept(self, row: int) -> list[Tensor]:
        """Return the masks [U, N] of the tokens that a row holds in every layer."""
        return [layer[row].keep_UN for layer in self._layers]

    def tokens_read(self, row: int) -> TokensRead | None:
        look = self._layers[0][row].entry.look
        return None if look is None else tokens_read([layer[row].reads for layer in self._layers])

    def peak(self, row: int) -> int:
        return max(layer[row].peak for layer in self._layers)

    def used_bytes(self, row: int) -> int:
        return sum(layer[row].k_UND.nbytes + layer[row].v_UND.nbytes for layer in self._layers)

    def held_bytes(self, row: int) -> int | None:
        return None

    def slack_bytes(self, row: int) -> int:
        return 0

    def bytes(self) -> int:
        held = {id(x): x.nbytes for layer in self._layers for row in layer.values() for x in (row.k_UND, row.v_UND)}
        return sum(held.values())


def _looked_at(row: _Row, look: Look, q_UGD: Tensor) -> Tensor:
    """Return which tokens [U, G, N] a decode step reads, from summaries of all blocks in this step."""
    seen = row.keep_UN.shape[1]
    everything = torch.ones(*q_UGD.shape[:2], seen, dtype=torch.bool, device=q_UGD.device)
    assert row.entry.reads is not None
    if row.reads.is_whole or seen <= row.entry.reads:
        return everything
    blocks = row.k_UND.split(look.block, 1)
    summary_UMX = torch.stack([look.summary(block_UBD) for block_UBD in blocks], 1)
    chosen_UGC = chosen_blocks(look, q_UGD, summary_UMX, row.entry.reads)
    block_N = torch.arange(seen, device=q_UGD.device) // look.block
    return (chosen_UGC[..., None] == block_N).any(2)


def _encode_due(row: _Row) -> None:
    """Replace the tokens whose turn has come by what is left of them after encoding and decoding.

    Tokens count in the order in which they arrived, dropped ones included. In a block, one that lives stands in for
    those that were dropped before it was encoded.
    """
    assert row.entry.store is not None
    for index, (half, x_UND) in enumerate(zip(row.entry.store.halves, (row.k_UND, row.v_UND), strict=True)):
        side = row.entry.side[index]
        for head, (keep_T, keep_N) in enumerate(zip(row.entry.keep_UT, row.keep_UN.tolist(), strict=True)):
            if half is not None:
                arrived = [*keep_T.nonzero().flatten().tolist(), *range(len(keep_T), len(keep_N))]
                end = store_answers.encoded(half, len(arrived), int(keep_T.sum()))
                firsts = range(row.encoded[index][head], end, half.block)
                row.encoded[index][head] = end
                blocks = [arrived[first : first + half.block] for first in firsts]
                blocks = [block for block in blocks if any(keep_N[token] for token in block)]
                if blocks:
                    _encode_blocks(half, side, x_UND, head, blocks, keep_N)


def _encode_blocks(
    half: Half, side: Side, x_UND: Tensor, head: int, blocks: Sequence[Sequence[int]], keep_N: Sequence[bool]
) -> None:
    """Encode and decode the tokens of some blocks of one head, in place."""
    stand_ins = [next(token for token in block if keep_N[token]) for block in blocks]
    rows = [[t if keep_N[t] else other for t in block] for block, other in zip(blocks, stand_ins, strict=True)]
    token_NB = torch.tensor(rows, device=x_UND.device)
    head_N = None if side.head is None else side.head[head].expand(len(blocks), *side.head.shape[1:])
    known_NB = None
    if side.token is not None:
        generated = x_UND.shape[1] - side.token.shape[1]
        of_all = torch.cat([side.token[head], side.token.new_zeros(generated, *side.token.shape[2:])])
        known_NB = of_all[token_NB]
    encoded = store_answers.encode(half, x_UND[head, token_NB], head_N, known_NB)
    held_NBD = store_answers.decode(half, encoded, head_N, len(blocks), x_UND.shape[-1])
    x_UND[head, token_NB] = held_NBD.to(x_UND.dtype)


def _evict(row: _Row, decoding: Decoding, attention_UGTN: Tensor) -> None:
    """Apply a decode policy after a step. Columns are positions; evicted tokens leave holes."""
    policy, base_U = decoding.policy, row.entry.base_U
    assert row.state_UN is not None and base_U is not None
    heads, seen = row.keep_UN.shape
    new, span = attention_UGTN.shape[2], row.entry.keep_UT.shape[1]
    device = row.keep_UN.device
    row.state_UN = torch.cat([row.state_UN, row.state_UN.new_zeros(heads, new)], 1)
    slots = Slots(
        torch.tensor([span], device=device),
        torch.tensor([seen], device=device),
        torch.arange(seen, device=device).expand(1, heads, -1),
        row.keep_UN[None],
        row.state_UN[None],
        aligned=True,
        draws_BU1=head_draws([row.entry.seed], row.layer, heads, device),
    )
    plan = row.entry.followed
    if plan is not None:
        slots.numbers_BUX, slots.pinned_BUC = plan.numbers_UX[None], _pinned(row, plan)[None]
    if policy.reads == "all":
        policy_answers.observe(policy, slots, attention_UGTN[None])
    elif policy.reads == "last":
        policy_answers.observe(policy, slots, attention_UGTN[None, :, :, -1:])
    row.state_UN = slots.state_BUC[0]
    steps = seen - span
    steps_11, span_11 = (torch.tensor([[tokens]], device=device) for tokens in (steps, span))
    limit = policy_answers.limits(policy, torch.tensor([base_U], device=device), steps_11, row.layer, span_11)
    slots.limit_BU = limit
    if limit is None:
        every = max(1, decoding.interval)
        if any(step % every == 0 for step in range(steps - new + 1, steps + 1)):
            gone_UN = policy_answers.gone(policy, slots)[0]
            row.keep_UN = row.keep_UN & ~(gone_UN if slots.pinned_BUC is None else gone_UN & ~slots.pinned_BUC[0])
            _hand_on(row, policy, slots)
        return
    if slots.pinned_BUC is not None:
        limit = slots.limit_BU = limit + slots.pinned_BUC[:, :, span:].sum(-1)
    before_UN = row.keep_UN
    scheduled = decoding.interval and any(step % decoding.interval == 0 for step in range(steps - new + 1, steps + 1))
    worth_UN, row.keep_UN = policy_answers.worth(policy, slots)[0], row.keep_UN.clone()
    if slots.pinned_BUC is not None:
        worth_UN = worth_UN.masked_fill(slots.pinned_BUC[0], torch.inf)
    for head, most in enumerate(limit[0].tolist()):
        held = row.keep_UN[head].nonzero().flatten().tolist()
        if len(held) > most + (0 if scheduled else decoding.buffer):
            worth = worth_UN[head].tolist()
            held.sort(key=lambda token: (worth[token], -token))
            row.keep_UN[head, held[: len(held) - most]] = False
    _hand_on(row, policy, slots)
    if policy.turns:
        slots.live_BUC = row.keep_UN[None]
        whole: Sequence[Sequence[int]] = [range(seen)] * heads
        _turn(row, before_UN, whole if policy.turns_all else policy.turned(slots)[0].tolist())


def _hand_on(row: _Row, policy: DecodePolicy, slots: Slots) -> None:
    """Add what tokens that stay take over of those that left, one by one; `slots` are those before they left."""
    gone_UN = slots.live_BUC[0] & ~row.keep_UN
    if not policy.merges or not bool(gone_UN.any()):
        return
    leaving = Leaving.of(gone_UN[None], slots.pos_BUC, slots.live_BUC, int(gone_UN.sum(1).max()))
    shares = policy_answers.shares(policy, slots, leaving)
    for name, share_BUNM in (("v_UND", shares.value_BUNM), ("k_UND", shares.key_BUNM)):
        if share_BUNM is not None:
            x_UND = getattr(row, name).clone()
            for head, number in leaving.due_BUN[0].nonzero().tolist():
                x_D = x_UND[head, leaving.column_BUN[0, head, number]].float()
                for into, share in zip(shares.into_BUNM[0, head, number], share_BUNM[0, head, number], strict=True):
                    if share != 0:
                        x_UND[head, into] += (share * x_D).to(x_UND.dtype)
            setattr(row, name, x_UND)


def _pinned(row: _Row, plan: Plan) -> Tensor:
    """Return the tokens [U, N] that never leave: those of the prompt, and generated ones by their ids."""
    wanted = set(plan.pin_ids.tolist())
    hits = torch.tensor([i in wanted for i in row.ids], dtype=torch.bool, device=row.keep_UN.device)
    return torch.cat([plan.pinned_UT, plan.pins_U[:, None] & hits], 1)


def _turn(row: _Row, before_UN: Tensor, columns: Sequence[Sequence[int]]) -> None:
    """Rotate the keys in some columns of each head by a position for every later token that left."""
    rotate = row.entry.rotate
    assert rotate is not None
    row.k_UND = row.k_UND.clone()
    gone_UN = (before_UN & ~row.keep_UN).int()
    later_UN = gone_UN.flip(1).cumsum(1).flip(1) - gone_UN
    for head, of_head in enumerate(columns):
        at = [column for column in of_head if row.keep_UN[head, column] and later_UN[head, column]]
        if at:
            turned = rotate(row.k_UND[head, at].float(), later_UN[head, at])
            row.k_UND[head, at] = turned.to(row.k_UND.dtype)
