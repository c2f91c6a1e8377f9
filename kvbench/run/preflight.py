"""The checks before weights are loaded: room in the budget, kernel, graph, memory, device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kvbench import models, store
from kvbench.engine.variant import Request
from kvbench.engine.walk import obstacle
from kvbench.methods.allowance import check_reach
from kvbench.methods.budgets import ByteShare
from kvbench.models.cache import ModelCache
from kvbench.models.load import checked_config
from kvbench.models.pretrained import skeleton
from kvbench.run import memory
from kvbench.run.jobs import Job
from kvbench.run.samples import GroupSamples
from kvbench.store.environment import device_kind
from kvbench_kernels.backends import AttentionSpec, unmet_requirement

log = logging.getLogger(__name__)


def check_room(job: Job, samples: GroupSamples) -> None:
    """Check that the budget leaves the method room on the prompts.

    Where it does so on some prompts only, the others are answered from the most recent tokens (`Job.variant_for`).

    Raises:
        ValueError: the budget is too small on every prompt of the run, or smaller than one token on some.
    """
    sizes = samples.sizes()
    _check_reach(job, [*samples.spans(), *samples.other_spans()])
    _check_store(job, samples)
    errors = [error for size in sizes if (error := _no_room(job, size)) is not None]
    if not errors:
        return
    is_fresh = len(sizes) == len(samples.own)  # no sample of the run is recorded
    if is_fresh and len(errors) == len(sizes) and all(_no_room(job, size) for size in samples.other_sizes()):
        raise errors[-1]
    for size in sizes:
        job.variant_for(*size)
    log.warning(
        "%s: on %d of %d prompts the budget is below what the method always keeps; there it keeps the most recent "
        "tokens alone",
        job.folder.name,
        len(errors),
        len(sizes),
    )


def _check_reach(job: Job, spans: Sequence[int]) -> None:
    """Raise ValueError if a budget in bytes is more than the method could use on any of the prompts."""
    if not isinstance(job.variant.budget, ByteShare):
        return
    errors = []
    for span in dict.fromkeys(spans):
        try:
            check_reach(job.variant.method, job.variant.budget, span, job.cache_shape)
            return
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def _check_store(job: Job, samples: GroupSamples) -> None:
    """Check that the method's store encodes something of a head that holds as many tokens as the heads do on average.

    Raises:
        ValueError: it encodes nothing on any prompt of the run.
    """
    method, budget = job.variant.method, job.variant.budget
    if method.store is None or isinstance(budget, ByteShare) or _no_room_anywhere(job, samples):
        return
    answers = {sample.id: sample.max_new_tokens for sample in samples.missing}
    held = {}
    for (name, prompt), size in zip(samples.prompts.items(), samples.sizes(), strict=True):
        span, _ = size
        tokens = method.tokens(budget, span) if _no_room(job, size) is None else None
        kept = span if tokens is None or method.keeps_prompt else min(tokens, span)
        grows = method.decoding is None or method.decoding.policy.adds_to_prompt
        held[name] = kept, kept + (len(prompt.ids) - span + answers[name] if grows else 0)
    idle = [most for kept, most in held.values() if not method.encodes(most, kept)]
    if not idle:
        return
    settings = ", ".join(f"method.{dial}={value}" for dial, value in method.unencoded_dials())
    what = f"{method.name} encodes nothing of {max(idle)} tokens per KV head, answers included ({settings})"
    if len(idle) == len(samples.own) and not any(samples.other_spans()):
        shown = "" if budget is None else f"budget={budget}: "
        raise ValueError(f"{shown}{what}; keep more tokens, or make these smaller")
    log.warning("%s: on %d of %d prompts %s", job.folder.name, len(idle), len(held), what)


def _no_room_anywhere(job: Job, samples: GroupSamples) -> bool:
    return all(_no_room(job, size) is not None for size in samples.sizes())


def _no_room(job: Job, size: tuple[int, int]) -> ValueError | None:
    """Return the error of a budget that leaves the method no room on a prompt; None if there is room."""
    try:
        job.check_room(*size)
    except ValueError as error:
        return error
    return None


def check_kernel(cfg: Mapping[str, Any], spec: models.ModelSpec, shape: models.Shape) -> None:
    """Raise ValueError if the kernel, the graph or the fused steps that the user asked for cannot run."""
    device = models.device(spec)
    if str(cfg["engine"]["graph"]).lower() == "true" and not device.startswith("cuda"):
        raise ValueError(f"engine.graph=true: CUDA graphs need a GPU, and the model is on device={device}")
    check_fused(cfg, spec)
    if str(cfg["engine"]["fused"]).lower() == "true" and device.startswith("cuda") and shape.itemsize != 2:
        raise ValueError("engine.fused=true: the kernels take bfloat16 and float16; choose engine.fused=auto")
    if cfg["kernel"] != "auto":
        dtype = torch.float32 if shape.itemsize == 4 else torch.bfloat16  # no kernel tells the half precisions apart
        use = AttentionSpec(torch.device(device), dtype, shape.head_dim, shape.heads // shape.kv_heads)
        lack = unmet_requirement(cfg["kernel"], use)
        if lack is not None:
            raise ValueError(f"kernel={cfg['kernel']}: {lack}")


def check_fused(cfg: Mapping[str, Any], spec: models.ModelSpec) -> None:
    """Raise ValueError if the user asked for fused steps, and no machine can run them with this model."""
    if str(cfg["engine"]["fused"]).lower() == "true":
        reason = obstacle(skeleton(checked_config(spec), spec.source.trust_remote_code))
        if reason is not None:
            raise ValueError(f"engine.fused=true: {reason}; choose engine.fused=auto")


def memory_limits(job: Job, requests: Sequence[Request], model_cache: ModelCache) -> memory.Limits:
    """Return what may decode together, and log what memory the requests of a group will take.

    A model of another job is freed first.
    """
    spec, engine = job.model, job.cfg["engine"]
    shape = models.shape(spec)
    model_cache.drop_others(spec)
    weights = 0 if model_cache.holds(spec) else shape.weight_bytes
    free = free_bytes(job)
    limits = memory.Limits(
        max_rows=engine["max_rows"],
        max_prompts=engine["max_prompts"],
        free=max(0, free - weights),
        shape=shape,
        question=job.question,
        masked=engine["cache"] == "masked",
    )
    largest = max(requests, key=lambda request: limits.total([request]))
    part = limits.part(largest)
    tokens = max(len(prompt.ids) for prompt in largest.prompts)
    need = limits.total([part])
    gib = memory.GIB
    log.info(
        "%s: %d row(s) of %d sample(s) to compute; memory: weights %s, the largest prompt (%d tokens, %d of %d "
        "row(s) at once) about %.2f GiB, of %.1f GiB free on %s",
        job.benchmark.name,
        sum(len(request.rows) for request in requests),
        sum(len(request.prompts) for request in requests),
        f"{shape.weight_bytes / gib:.2f} GiB" if shape.weight_bytes else "of unknown size (quantised, not here yet)",
        tokens,
        len(part.rows),
        len(largest.rows),
        need / gib,
        free / gib,
        models.device(spec),
    )
    if need > limits.free:
        log.warning(
            "that may be more than there is: samples that do not fit are recorded as out of memory; choose a smaller "
            "model, model.dtype=bfloat16, model.device_map=auto or a smaller model.max_length"
        )
    return limits


def free_bytes(job: Job) -> int:
    """Return the bytes that a job may use now."""
    all_gpus = job.model.device_map is not None
    return int(memory.FRACTION * memory.free_bytes(models.device(job.model), all_gpus=all_gpus))


def check_method(job: Job, shape: models.Shape) -> None:
    """Raise ValueError if the method cannot work on a model of this shape."""
    method = job.variant.method
    method.check_head_dim(shape.head_dim)
    method.check_model(layers=shape.compressed_layers, heads=shape.kv_heads, query_heads=shape.heads)


def check_save(job: Job) -> None:
    """Raise ValueError if kept tokens are asked for that the method cannot name.

    A method that takes its prompt in chunks decides again after each, so there is no single choice to save.
    """
    if job.cfg["save"]["kept"] and job.variant.method.feed is not None:
        raise ValueError(
            f"save.kept=true: {job.variant.method.name} takes its prompt in chunks, so there is no single "
            "choice of tokens to save; leave out save.kept, or use kvbench inspect"
        )


def asked_kind(spec: models.ModelSpec) -> str:
    """Return the kind of device that a model is asked to be on: auto, cpu or cuda."""
    return "cuda" if spec.device_map else device_kind(spec.device)


def check_device(job: Job, here: str) -> None:
    """Check that the samples of a run that are there were computed on the kind of device that computes the others.

    The device is not part of the identity, so all kinds have one folder; but a number is of one of them.

    Args:
        here: the kind that would compute the others.

    Raises:
        ValueError: they were computed on another kind.
    """
    if not (job.folder / "manifest.json").is_file():
        return
    there = device_kind(store.load_manifest(job.folder)["device"])
    if here != there and (recorded := len(store.recorded_ids(job.folder))):
        raise ValueError(
            f"model.device={job.model.device}: {job.folder} has {recorded} samples computed on {there}, and the others "
            f"would be on {here}; choose another paths.outputs"
        )
