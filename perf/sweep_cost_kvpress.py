"""kvpress' side of sweep_cost.py, in a process and a virtual environment of its own. It does not import kvbench.

It runs kvpress as its users do: its own pipeline, one press and one compression ratio per call, question-agnostic.
The pipeline returns text; the ids of that text are noted on their way through the tokenizer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

WINDOW = {"window_size": 32, "kernel_size": 7}  # the same as METHODS of sweep_cost_kvbench.py


def serve(worker: Any) -> None:
    """Answer requests, one JSON object per line: {"do": method of `worker`, ...arguments}.

    Answers go to the stdout this process was started with. File descriptor 1 becomes stderr, so that what libraries
    print is no answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


def memory_mib() -> dict[str, float | None]:
    """Return the memory of this process (None if the system does not tell), and the most it ever had."""
    try:
        with open("/proc/self/statm") as file:
            resident: float | None = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        resident = None
    return {"resident": resident, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


class Kvpress:
    """The pipeline, and a second one with eager attention where a press asks for it."""

    def load(self, model: str, threads: int, methods: Sequence[str]) -> dict[str, Any]:
        begin = time.perf_counter()
        import torch
        from kvpress import KVPressTextGenerationPipeline
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._pipelines = {}
        for attention in ("sdpa", "eager") if "h2o" in methods else ("sdpa",):
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation=attention)
            loaded.generation_config.eos_token_id = None  # every run makes all its tokens
            self._pipelines[attention] = KVPressTextGenerationPipeline(model=loaded, tokenizer=tokenizer)
        self._made: list[list[int]] = []
        decode = tokenizer.decode

        def noting_decode(ids: Any, **kwargs: Any) -> str:
            self._made.append(ids.tolist())
            return str(decode(ids, **kwargs))

        tokenizer.decode = noting_decode
        return {
            "seconds": time.perf_counter() - begin,
            "versions": {name: version(name) for name in ("kvpress", "torch", "transformers")},
        }

    def encode(self, context: str, question: str) -> list[list[int]]:
        """Return the pipeline's ids of a text: of the context in its chat wrapper, and of the question."""
        result = self._pipelines["sdpa"].preprocess(context, [question], "", int(1e10))
        return [result["context_ids"][0].tolist(), result["questions_ids"][0][0].tolist()]

    def sweep(self, prompts: list[dict[str, Any]], variants: list[list[Any]], new: int) -> dict[str, Any]:
        """Run every variant [method, share kept] on every prompt, one after the other."""
        seconds, ids = [], []
        for method, share in variants:
            begin = time.perf_counter()
            result = [self._one(method, share, new, prompt) for prompt in prompts]
            seconds.append(time.perf_counter() - begin)
            ids.append(result)
        return {"seconds": seconds, "ids": ids}

    def _one(self, method: str, share: float, new: int, prompt: dict[str, Any]) -> list[int]:
        span = prompt["context_len"]
        kept = int(share * span + 1e-9)
        # the hundredth of a token protects kvpress' int(span * (1 - ratio)) from binary fractions
        press = _press(method, 1 - (kept + 0.01) / span)
        pipeline = self._pipelines["eager" if method == "h2o" else "sdpa"]
        self._made.clear()
        pipeline(prompt["context"], question=prompt["question"], press=press, max_new_tokens=new)
        (ids,) = self._made
        return ids

    def memory(self) -> dict[str, float | None]:
        return memory_mib()


def _press(method: str, ratio: float) -> Any:
    import kvpress

    if method == "fullkv":
        return None
    if method == "streaming_llm":
        return kvpress.StreamingLLMPress(ratio, n_sink=4)
    if method == "snapkv":
        return kvpress.SnapKVPress(ratio, **WINDOW)
    if method == "pyramidkv":
        return kvpress.PyramidKVPress(ratio, **WINDOW, beta=20)
    if method == "ada_snapkv":
        return kvpress.AdaKVPress(kvpress.SnapKVPress(ratio, **WINDOW), alpha_safeguard=0.2)
    if method == "ada_pyramidkv":
        return kvpress.AdaKVPress(kvpress.PyramidKVPress(ratio, **WINDOW, beta=20), alpha_safeguard=0.2)
    if method == "h2o":
        return kvpress.ObservedAttentionPress(ratio)
    raise ValueError(f"no press for {method}")


if __name__ == "__main__":
    serve(Kvpress())
