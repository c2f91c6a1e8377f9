"""The seed of a command, refused where nothing draws by it: the result would be that of another seed again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench.benchmarks.base import Benchmark, Suite
from kvbench.config.interpolations import texts
from kvbench.config.schema import GROUPS, Config

_SEED = re.compile(r"\$\{\s*(oc\.select\s*:\s*)?seed\s*[,}]")  # an interpolation of the root's seed


class IdleSeed(ValueError):
    """A root `seed` other than the default where nothing draws by it; one line naming the override to change."""


def check_seed(cfg: DictConfig, benchmark: Benchmark | Suite | None, method_draws: bool | None) -> None:
    """Refuse a seed that changes nothing.

    The root's `seed` is read by parts of a method that draw (`Method.draws`), and by settings that interpolate it,
    as `seed` of a benchmark does. A benchmark with `draws = False` reads none.

    Args:
        cfg: the composed configuration, interpolations as they are written.
        benchmark: whose samples are drawn; None for a text of the user's.
        method_draws: `Method.draws` of the method that runs; None if none runs.

    Raises:
        IdleSeed: one line naming the seed to set instead.
        ValueError: the benchmark has a seed of its own and draws nothing.
    """
    written = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(written, dict)
    nodes: dict[str, Mapping[str, Any]] = {str(key): written[key] for key in GROUPS}
    own, draws = nodes["benchmark"].get("seed"), benchmark is not None and getattr(benchmark, "draws", True)
    if benchmark is not None and not draws and isinstance(own, int) and own != Config.seed:
        raise ValueError(f"benchmark.seed={own}: {benchmark.name} draws nothing, so nothing would change; leave it out")
    if cfg.seed == Config.seed or method_draws:
        return
    if not draws:
        nodes.pop("benchmark")
    if method_draws is None:
        nodes.pop("method")
    if any(_SEED.search(text) for _, text in texts(nodes)):
        return
    asked = [f"benchmark={benchmark.name}"] if benchmark is not None else []
    asked += [f"method={cfg.method.name}"] if method_draws is not None else []
    samples = f"; its samples follow from benchmark.seed={own}" if draws and isinstance(own, int) else ""
    raise IdleSeed(
        f"seed={cfg.seed}: {_none_of(asked)} draws by it, so the result would be that of seed={Config.seed}; "
        f"set seed={Config.seed}{samples}"
    )


def _none_of(names: list[str]) -> str:
    return f"neither {names[0]} nor {names[1]}" if len(names) > 1 else f"nothing of {names[0]}"
