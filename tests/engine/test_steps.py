"""The choice of tokens on the device, their way to the host, and the input of the next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.engine import graph
from kvbench.engine.greedy import best_tokens
from kvbench.engine.steps import Outbox
from kvbench.models.load import Loaded
from kvbench.prompts import Prompt
from tests.helpers.recorder import recorded_engine

PROMPTS = [list(range(5, 65)), list(range(30, 120)), list(range(9, 50))]
VARIANTS = [("fullkv", None), ("snapkv", 40), ("ada_snapkv", 36), ("h2o_decode", 38)]


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return kvbench.load_model("tiny")


@pytest.fixture
def recorded(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return recorded_engine(tiny, monkeypatch)


def by_hand(logits_BV: Tensor) -> list[int]:
    """Return the first index of each row's largest number; -1 for a row with NaN or without a finite largest one."""
    chosen = []
    for row in logits_BV.float().tolist():
        bad = any(x != x for x in row) or max(row) in (float("inf"), -float("inf"))
        chosen.append(-1 if bad else row.index(max(row)))
    return chosen


def hard(vocab: int, dtype: torch.dtype) -> Tensor:
    """Return logits with many ties, also between the first and the last index, and rows without a finite largest."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-3, 4, (12, vocab), generator=generator).to(dtype)
    logits[1], logits[2, -1], logits[3, [0, -1]] = 0, 9, 9
    logits[4, vocab // 2], logits[5, -1], logits[6, 0] = torch.nan, torch.inf, -torch.inf
    logits[7], logits[8, : vocab // 2] = -torch.inf, -torch.inf
    logits[9, 0], logits[9, -1] = torch.inf, torch.nan
    logits[10] = torch.randn(vocab, generator=generator).to(dtype)
    return logits


@pytest.mark.parametrize("vocab", [1, 2, 257, 300, 1001, 32000, 50257, 128256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_of_the_largest_logits_is_chosen(vocab: int, dtype: torch.dtype) -> None:
    logits = hard(vocab, dtype)
    assert best_tokens(logits).tolist() == by_hand(logits)
    one_of_more = torch.stack([logits, logits.flip(1)], 1)  # as a model gives them: [B, T, V]
    assert best_tokens(one_of_more[:, -1]).tolist() == by_hand(logits.flip(1))


@pytest.mark.cuda
@pytest.mark.parametrize("vocab", [257, 300, 32000, 128256])
def test_the_choice_is_the_same_on_a_gpu_and_in_a_graph(vocab: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = hard(vocab, dtype)
        held = torch.zeros_like(logits, device="cuda")
        best_tokens(held)
        out, replay = graph.CudaRecorder(held.device)(lambda: graph.Out(held, best_tokens(held)))  # noqa: B023
        outbox = Outbox(held.device)
        assert out.token_B is not None
        reads = []
        for each in (logits, logits.flip(1)):
            held.copy_(each)
            replay()
            reads.append(outbox.send(out.token_B))
        assert [read() for read in reads] == [by_hand(logits), by_hand(logits.flip(1))]
        assert best_tokens(held).tolist() == by_hand(logits.flip(1))


def test_tokens_wait_in_two_buffers() -> None:
    """The tokens of a step are read after those of the next are on their way; rows may leave in between."""
    outbox, token_B = Outbox(torch.device("cpu")), torch.tensor([1, 2, 3])
    first = outbox.send(token_B)
    token_B.copy_(torch.tensor([4, -1, 6]))
    second = outbox.send(token_B)
    assert first() == [1, 2, 3]
    third = outbox.send(torch.tensor([7]))
    assert (second(), third()) == ([4, -1, 6], [7])


class FakeCuda:
    """The events and the pinned memory of a GPU, which comes to an event when it is waited for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.queue: list[Callable[[], object]] = []
        empty, copy_ = torch.empty, Tensor.copy_

        def later(buffer: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            assert non_blocking, "the host waited for a copy"
            self.queue.append(lambda: copy_(buffer, source))
            return buffer

        def pinned(count: int, pin_memory: bool, **settings: Any) -> Tensor:
            assert pin_memory, "a copy to other memory waits for the device"
            return empty(count, **settings).fill_(-7)

        patch.setattr(torch, "empty", pinned)
        patch.setattr(Tensor, "copy_", later)
        patch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=self.record, synchronize=self.finish))
        patch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1" and self.queue, "an event comes after the copy, on its stream"

    def finish(self) -> None:
        for work in self.queue:
            work()
        self.queue.clear()


def test_the_host_waits_for_the_copy_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    token_B = torch.tensor([5, 6])
    with monkeypatch.context() as patch:
        cuda = FakeCuda(patch)
        read = Outbox(torch.device("cuda", 1)).send(token_B)
        assert len(cuda.queue) == 1
        assert read() == [5, 6] and not cuda.queue


def prompts(least: Sequence[int], stops: Sequence[int]) -> list[Prompt]:
    return [
        Prompt(tuple(ids), context_len=len(ids), stop_ids=frozenset(stops), text="", min_new_tokens=new)
        for ids, new in zip(PROMPTS, least, strict=True)
    ]


def counts(outs: Any) -> list[Any]:
    """Return what must not depend on how steps run."""
    return [
        [(g.token_ids, g.finish_reason, g.error, g.kept_max, g.read, g.kept, g.kv_bytes, g.slack_bytes) for g in row]
        for row in outs
    ]


def test_rows_may_not_stop_before_their_least_number_of_tokens(tiny: Loaded, recorded: SimpleNamespace) -> None:
    """The host chooses as long as a row is short of it, and the device afterwards."""
    free = kvbench.generate(*model_of(tiny), PROMPTS, VARIANTS, stop_ids=[], max_new_tokens=28)
    stops = [free[0][0].token_ids[7], free[1][1].token_ids[9], free[2][0].token_ids[6]]
    settings = {"max_new_tokens": 28, "max_prompts": 3}
    for least in ((0, 0, 0), (9, 0, 14), (8, 8, 8), (40, 0, 0)):
        asked = prompts(least, stops)
        expected = kvbench.generate(*model_of(tiny), asked, VARIANTS, **settings)
        assert counts(recorded.generate(asked, VARIANTS, **settings)) == counts(expected)
        assert all(len(g.token_ids) > new for row, new in zip(expected, least, strict=True) for g in row if new < 28)
    assert recorded.batches[0].replayed > 0


def test_a_row_that_fails_in_a_recorded_step_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = kvbench.load_model("tiny", seed=1)
    settings = {"max_new_tokens": 24, "max_prompts": 3, "stop_ids": []}
    free = kvbench.generate(*model_of(loaded), PROMPTS, VARIANTS, **settings)
    poison = late_token([g.token_ids for row in free for g in row])
    loaded.model.get_input_embeddings().weight.data[poison] = torch.nan
    expected = kvbench.generate(*model_of(loaded), PROMPTS, VARIANTS, **settings)
    ends = [(g.finish_reason, len(g.token_ids)) for row in expected for g in row]
    assert any(reason == "failed" and length > 8 for reason, length in ends) and ("length", 24) in ends
    recorded = recorded_engine(loaded, monkeypatch)
    assert counts(recorded.generate(PROMPTS, VARIANTS, **settings)) == counts(expected)
    assert recorded.batches[0].replayed > 0


def late_token(answers: Sequence[Sequence[int]]) -> int:
    """Return a token that some answers have after nine others, some never, and no answer or prompt before."""
    seen = {token for ids in [*PROMPTS, *(answer[:9] for answer in answers)] for token in ids}
    late = [{*answer[9:-1]} - seen for answer in answers]
    return next(token for each in late for token in sorted(each) if not all(token in other for other in late))


def test_replays_of_the_same_rows_upload_nothing(tiny: Loaded, recorded: SimpleNamespace) -> None:
    uploads = 0

    class Steps(graph.GraphedSteps):
        def __call__(self, inputs: graph.Inputs, attention: Any) -> graph.Out:
            def counted() -> tuple[Tensor, Tensor]:
                nonlocal uploads
                uploads += 1
                return inputs()

            return super().__call__(counted, attention)

    recorded.generate(PROMPTS[:1], VARIANTS, steps=Steps, stop_ids=[], max_new_tokens=24)
    assert uploads == graph._STEADY + 2, "once per eager step, and twice for the recording"


def model_of(loaded: Loaded) -> tuple[Any, Any]:
    return loaded.model, loaded.tokenizer
