"""The rows that the engine decodes, and the generations that they become.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from kvbench.cache.base import KVCache, TokensRead
from kvbench.engine.choices import Choice
from kvbench.engine.prefill import PrefillPass
from kvbench.engine.variant import Generation, PromptLike, Request, Timings


@dataclass(eq=False)
class Row:
    """One unfinished generation.

    Attributes:
        id: its row in the cache.
        place: its index in the request's rows.
        prompt: the context and this row's question.
        choice: what its variant keeps of the context.
        max_new_tokens: most tokens of the answer.
        seen: tokens of its sequence so far.
        ids: generated tokens.
        finish: why it stopped; None until then.
        error: why it failed, in one line.
        kept_max: most tokens that any head stored, set when it stops.
        read: tokens that its decode steps read, set when it stops; None if they read everything.
        feed_s: seconds of a prompt that was fed in chunks, with all variants that were fed together; else None.
        first_token_s: seconds from the prefill to the first token.
        began_s: decode seconds of the batch at its first token.
        decode_s: decode seconds from its first token to its last, set when it stops.
        measured: the kept tokens per layer and head, and the used, slack and held bytes, right after compression.
    """

    id: int
    place: int
    prompt: PromptLike
    choice: Choice
    max_new_tokens: int
    seen: int
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    kept_max: int = 0
    read: TokensRead | None = None
    feed_s: float | None = None
    first_token_s: float = 0.0
    began_s: float = 0.0
    decode_s: float = 0.0
    measured: tuple[list[list[int]], int, int, int | None] = ([], 0, 0, None)

    def measure(self, kv: KVCache) -> None:
        """Note what the row stores right after compression."""
        self.measured = kv.lengths(self.id), kv.used_bytes(self.id), kv.slack_bytes(self.id), kv.held_bytes(self.id)

    def stop(self, kv: KVCache, clock: float) -> None:
        """Note what the row stored and read when it stops. `clock`: decode seconds of the batch so far."""
        self.decode_s = clock - self.began_s
        self.kept_max, self.read = kv.peak(self.id), kv.tokens_read(self.id)


@dataclass(eq=False)
class OpenRequest:
    """A request whose context is in the cache, and its rows.

    Attributes:
        failed: generations of the rows whose prompts the model cannot answer, by their index in the request.
        prefill_s: seconds of the prefill without compression.
        logits: per row of the cache, the logits [V] of the context's last token, until the first tokens are chosen.
        layout_s: seconds of the cache's layout, per row.
        together: rows that decode together when this request joins.
    """

    request: Request
    rows: list[Row]
    failed: dict[int, Generation]
    prefill: PrefillPass
    prefill_s: float
    logits: dict[int, Tensor]
    layout_s: float = 0.0
    together: int = 0

    @property
    def is_complete(self) -> bool:
        """True if all rows have stopped."""
        return all(row.finish is not None for row in self.rows)

    def generations(self, text: Callable[[Row], str], ran: tuple[str, str]) -> list[Generation]:
        """Return the generations of a request whose rows have all stopped, in the request's order.

        Args:
            text: returns the text of a row.
            ran: the kernel and the decode step.
        """
        done = self.failed | {row.place: self._generation(row, text(row), ran) for row in self.rows}
        return [done[place] for place in range(len(self.request.rows))]

    def _generation(self, row: Row, text: str, ran: tuple[str, str]) -> Generation:
        kept, used, slack, held = row.measured
        tokens, promised = row.choice.budget()
        steps = len(row.ids) - 1
        compress_s = row.choice.time.seconds + self.layout_s
        prefill_s = self.prefill_s if row.feed_s is None else row.feed_s
        return Generation(
            text=text,
            token_ids=row.ids,
            finish_reason=row.finish or "length",
            prompt_tokens=len(row.prompt.ids),
            span=self.prefill.span,
            budget_tokens=tokens,
            budget_bytes=promised,
            kept=kept,
            kept_max=max(row.kept_max, max(map(max, kept))),
            read=row.read,
            kv_bytes=used,
            slack_bytes=slack,
            held_bytes=held,
            forms=row.choice.forms(),
            chosen=row.choice.chosen,
            kv_bytes_full=self.prefill.full_bytes,
            rows=self.together,
            kernel=ran[0],
            decode_step=ran[1],
            timings=Timings(
                prefill_s,
                compress_s,
                prefill_s + compress_s + row.first_token_s,
                row.decode_s / steps if steps > 0 else None,
            ),
            error=row.error,
            kept_mask=row.choice.kept_mask(),
        )


def failed_generation(prompt: PromptLike, span: int, ran: tuple[str, str], error: str) -> Generation:
    """Return the generation of a row for which nothing was computed."""
    return Generation(
        text="",
        token_ids=[],
        finish_reason="failed",
        prompt_tokens=len(prompt.ids),
        span=span,
        budget_tokens=None,
        kept=[],
        kept_max=0,
        kv_bytes=0,
        slack_bytes=0,
        kv_bytes_full=0,
        rows=0,
        kernel=ran[0],
        decode_step=ran[1],
        error=error,
    )
