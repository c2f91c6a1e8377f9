"""The settings `hydra.launcher.*` for Slurm: checked before anything is composed, named when sbatch refuses them."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kvbench.common.kinds import is_integer, is_number


@dataclass(frozen=True)
class SlurmSettings:
    """The settings of conf/hydra/launcher/fused_slurm.yaml, which explains them."""

    folder: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    timeout_min: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    shards: int = 1
    array_parallelism: int = 32
    signal_delay_s: int = 120
    max_requeues: int | None = 10
    wait: bool = True
    poll_s: float = 10


_LOWEST = {
    "gpus_per_node": 0,
    "cpus_per_task": 1,
    "timeout_min": 1,
    "shards": 1,
    "array_parallelism": 1,
    "signal_delay_s": 1,
    "max_requeues": 0,
}
_NULL = ("gpus_per_node", "cpus_per_task", "timeout_min", "max_requeues")
_OURS = ("job-name", "array", "output", "error", "nodes", "ntasks", "ntasks-per-node", "signal")
_REFUSALS = (  # what sbatch says, and which settings it means
    ("accounting/qos policy", ("qos", "account", "timeout_min", "gpus_per_node")),
    ("account", ("account",)),
    ("partition", ("partition",)),
    ("qos", ("qos",)),
    ("time limit", ("timeout_min",)),
    ("feature", ("constraint",)),
    ("memory", ("mem_gb",)),
    ("gres|gpu", ("gpus_per_node",)),
    ("cpu|processors", ("cpus_per_task",)),
    ("node configuration", ("gpus_per_node", "cpus_per_task", "mem_gb")),
    ("option|reservation|--", ("extra",)),
)


def checked(settings: Mapping[str, Any]) -> SlurmSettings:
    """Return the settings with their types. Raises ValueError naming the override to change."""
    values = {key: _plain(value) for key, value in settings.items()}
    for name in ("partition", "account", "qos", "constraint"):
        if values.get(name) is not None:
            values[name] = str(values[name])
            if not values[name].isprintable() or not values[name].strip():  # a new line would be one of the script
                raise _wrong(name, repr(values[name]), "must be one line of text, or null")
    for name, lowest in _LOWEST.items():
        value = values.get(name, lowest)
        if value is None and name in _NULL:
            continue
        if not is_integer(value) or value < lowest:
            raise _wrong(name, value, f"must be an integer of at least {lowest}{' or null' * (name in _NULL)}")
    for name in ("mem_gb", "poll_s"):
        value = values.get(name, 1)
        if value is None and name == "mem_gb":
            continue
        if not is_number(value) or value <= 0:
            raise _wrong(name, value, "must be a number above 0")
    if not isinstance(values.get("wait", True), bool):
        raise _wrong("wait", values["wait"], "must be true or false")
    if not isinstance(values.get("extra", {}), dict):
        raise _wrong("extra", values["extra"], "must name options of sbatch, such as {reservation: x}")
    for name in values.get("extra", {}):
        if name.replace("_", "-") in _OURS:
            raise ValueError(f"hydra.launcher.extra.{name}: kvbench sets this itself, to find its tasks and their logs")
    if isinstance(values.get("setup"), str):
        values["setup"] = [values["setup"]]
    return SlurmSettings(**values)


def available() -> None:
    """Raise ValueError if this machine cannot submit."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("hydra/launcher=fused_slurm: needs submitit: pip install 'kvbench[slurm]'")
    for tool in ("sbatch", "squeue", "scontrol", "srun"):
        if shutil.which(tool) is None:
            raise ValueError(
                f"hydra/launcher=fused_slurm: there is no {tool} on this machine; submit on a login node of the "
                "cluster, or leave the launcher out to compute here"
            )


def refusal(answer: str, settings: SlurmSettings) -> ValueError:
    """Return the refusal of sbatch as one line that names the settings it is about."""
    text = re.sub(r"(^|\s)sbatch: ((error|fatal): )?", " ", answer).strip() or "no reason given"
    text = re.sub(r"\s+", " ", text).replace("Batch job submission failed: ", "")
    for pattern, names in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE):
            chosen = [f"hydra.launcher.{n}={getattr(settings, n)}" for n in names if getattr(settings, n)]
            if chosen:
                return ValueError(f"{', '.join(chosen)}: Slurm refuses: {text}")
            return ValueError(f"hydra.launcher.{names[0]}=null: Slurm refuses: {text}")
    return ValueError(f"hydra/launcher=fused_slurm: Slurm refuses: {text}")


def _wrong(name: str, value: Any, must: str) -> ValueError:
    return ValueError(f"hydra.launcher.{name}={value}: {must}")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
