"""The seed of a run, refused where nothing draws by it: its run would be that of another seed, computed again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench.benchmarks.base import Benchmark, Suite
from kvbench.config.interpolations import texts
from kvbench.config.schema import GROUPS, Config
from kvbench.methods.method import Method

_SEED = re.compile(r"\$\{\s*(oc\.select\s*:\s*)?seed\s*[,}]")  # an interpolation of the root's seed


def check_seed(cfg: DictConfig, method: Method, benchmark: Benchmark | Suite) -> None:
    """Refuse a seed that changes nothing.

    The root's `seed` is read by parts of a method that draw (`Method.draws`), and by settings that interpolate it,
    as `seed` of a benchmark does. A benchmark with `draws = False` reads none.

    Args:
        cfg: the composed configuration, interpolations as they are written.

    Raises:
        ValueError: one line naming the seed to leave out, and the one to set instead if there is one.
    """
    written = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(written, dict)
    nodes: dict[str, Mapping[str, Any]] = {str(key): written[key] for key in GROUPS}
    own, draws = nodes["benchmark"].get("seed"), getattr(benchmark, "draws", True)
    if not draws and isinstance(own, int) and own != Config.seed:
        raise ValueError(f"benchmark.seed={own}: {benchmark.name} draws nothing, so nothing would change; leave it out")
    if cfg.seed == Config.seed or method.draws:
        return
    if not draws:
        nodes.pop("benchmark")
    if any(_SEED.search(text) for _, text in texts(nodes)):
        return
    samples = f"; its samples follow from benchmark.seed={own}" if draws and isinstance(own, int) else ""
    raise ValueError(
        f"seed={cfg.seed}: neither benchmark={benchmark.name} nor method={method.name} draws by it, so its run would "
        f"repeat that of seed={Config.seed}; set seed={Config.seed}{samples}"
    )
