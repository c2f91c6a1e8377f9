"""kvbench's side of sweep_cost.py, in a process of its own, and what it is compared with in the same process."""

from __future__ import annotations

import time
from typing import Any

from sweep_cost_kvpress import memory_mib, serve

WINDOW = {"window": 32, "kernel_size": 7, "pooling": "avg"}
METHODS: dict[str, dict[str, Any]] = {
    "snapkv": WINDOW,
    "streaming_llm": {"sinks": 4},
    "pyramidkv": {**WINDOW, "beta": 20},
    "ada_snapkv": {**WINDOW, "floor": 0.2},
    "ada_pyramidkv": {**WINDOW, "floor": 0.2, "beta": 20},
    "h2o": {},
}


def forward_seconds(model: Any, attention: str, ids: list[int], batch: int, position: int) -> float:
    """Time a forward call of `batch` equal rows with the engine's products; `attention` "free" returns the queries."""
    import torch
    import transformers

    from kvbench.engine.products_cpu import fast_products

    transformers.AttentionInterface.register("free", lambda module, q, *args, **kwargs: (q.transpose(1, 2), None))
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        begin = time.perf_counter()
        ids_BT = torch.tensor([ids]).expand(batch, -1)
        places_BT = torch.arange(position, position + len(ids)).expand(batch, -1)
        with fast_products(ids_BT):
            model(ids_BT, position_ids=places_BT, use_cache=False, logits_to_keep=1).logits.argmax(-1)
        seconds = time.perf_counter() - begin
    model.set_attn_implementation(before)
    return seconds


class Kvbench:
    """kvbench's side, and what it is compared with in the same process."""

    def load(self, threads: int) -> dict[str, Any]:
        begin = time.perf_counter()
        import torch
        import transformers

        import kvbench

        torch.set_num_threads(threads)
        loaded = kvbench.load_model("smollm2_135m", device="cpu")
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._model.generation_config.eos_token_id = None  # every run makes all its tokens
        return {
            "seconds": time.perf_counter() - begin,
            "versions": {
                "kvbench": kvbench.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def text(self, seed: int, tokens: int) -> str:
        from kvbench.benchmarks.prose import generated

        return str(self._tokenizer.decode(self._tokenizer(generated(seed, 8 * tokens))["input_ids"][:tokens]))

    def sweep(self, prompts: list[dict[str, Any]], variants: list[list[Any]], new: int) -> dict[str, Any]:
        """Answer all prompts with all variants [method, share kept], in one call."""
        import kvbench
        from kvbench.prompts import Prompt

        rendered = [Prompt(tuple(p["ids"]), p["context_len"], frozenset(), p["context"]) for p in prompts]
        begin = time.perf_counter()
        result = {name: kvbench.load_method(name, **METHODS.get(name, {})) for name, _ in variants}
        rows = [kvbench.Variant(result[name], share) for name, share in variants]
        outs = kvbench.generate(
            self._model, self._tokenizer, rendered, rows, max_new_tokens=new, question="agnostic", stop_ids=[]
        )
        seconds = time.perf_counter() - begin
        ids = [[out[row].token_ids for out in outs] for row in range(len(rows))]
        return {"seconds": seconds, "ids": ids, "rows": outs[0][0].rows}

    def plain(self, prompts: list[dict[str, Any]], new: int) -> dict[str, Any]:
        """Run transformers' own generate with the full cache."""
        import torch

        begin = time.perf_counter()
        ids = []
        for prompt in prompts:
            ids_BT = torch.tensor([prompt["ids"]])
            mask_BT = torch.ones_like(ids_BT)
            out_BT = self._model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=new, do_sample=False)
            ids.append(out_BT[0, ids_BT.shape[1] :].tolist())
        return {"seconds": time.perf_counter() - begin, "ids": ids}

    def floor(self, prompts: list[dict[str, Any]], variants: int, rows: int, new: int) -> dict[str, float]:
        """Measure the seconds that no sweep can save: the prefills, and each row's own tokens, `rows` at once."""

        def forward(*call: Any) -> float:
            return forward_seconds(self._model, *call)

        total = variants * len(prompts)
        batches = [min(rows, total - first) for first in range(0, total, rows)]
        context, end = prompts[0]["context_len"], len(prompts[0]["ids"])
        question = prompts[0]["ids"][context:]
        step = question[-1:]
        return {
            "prefill": sum(forward("sdpa", p["ids"][: p["context_len"]], 1, 0) for p in prompts),
            "question": sum(forward("free", question, batch, context) for batch in batches),
            "decode": sum(forward("free", step, batch, end + i) for batch in batches for i in range(new - 1)),
        }

    def memory(self) -> dict[str, float | None]:
        return memory_mib()


if __name__ == "__main__":
    serve(Kvbench())
