"""The rows that the engine decodes, and the generations that they become.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kvbench.engine.prefill import PrefillPass
from kvbench.engine.variant import Generation, Request, Timings


@dataclass(eq=False)
class Row:
    """One unfinished generation.

    Attributes:
        id: its row in the cache.
        seen: tokens of its sequence so far.
        ids: generated tokens.
        finish: why it stopped; None until then.
        error: why it failed, in one line.
        kept_max: most tokens that any head stored, set when it stops.
        clock: decode seconds of the batch at its first token; when it stops, from its first token to its last.
    """

    id: int
    request: Request
    seen: int
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    kept_max: int = 0
    clock: float = 0.0


@dataclass(eq=False)
class OpenRequest:
    """A request whose prompt is in the cache, and its rows.

    Attributes:
        prefill_s: seconds of the prefill without compression.
        logits_BV: logits of the prompt's last token, until the first tokens are chosen.
        first_token_s: seconds from the prefill to the first tokens.
        layout_s: seconds of the cache's layout, per row.
        measured: per row, the kept tokens per layer and head, and the used and slack bytes.
        together: rows that decode together when this request joins.
    """

    request: Request
    rows: list[Row]
    prefill: PrefillPass
    prefill_s: float
    logits_BV: Tensor | None
    first_token_s: float = 0.0
    layout_s: float = 0.0
    measured: list[tuple[list[list[int]], int, int]] = field(default_factory=list)
    together: int = 0

    def generation(self, index: int, text: str, ran: tuple[str, str]) -> Generation:
        """Return the generation of a row that has stopped. `ran`: the kernel and the decode step."""
        row, (kept, used, slack) = self.rows[index], self.measured[index]
        steps = len(row.ids) - 1
        compress_s = self.prefill.compress_s[index] + self.layout_s
        return Generation(
            text=text,
            token_ids=row.ids,
            finish_reason=row.finish or "length",
            prompt_tokens=len(row.request.prompt.ids),
            span=self.prefill.span,
            budget_tokens=self.prefill.tokens[index],
            kept=kept,
            kept_max=max(row.kept_max, max(map(max, kept))),
            kv_bytes=used,
            slack_bytes=slack,
            kv_bytes_full=self.prefill.full_bytes,
            rows=self.together,
            kernel=ran[0],
            decode_step=ran[1],
            timings=Timings(
                self.prefill_s,
                compress_s,
                self.prefill_s + compress_s + self.first_token_s,
                row.clock / steps if steps > 0 else None,
            ),
            error=row.error,
        )


def failed_generation(request: Request, span: int, ran: tuple[str, str], error: str) -> Generation:
    """Return the generation of a row for which nothing was computed."""
    return Generation(
        text="",
        token_ids=[],
        finish_reason="failed",
        prompt_tokens=len(request.prompt.ids),
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
