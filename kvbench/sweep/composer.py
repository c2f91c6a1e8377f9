"""The configurations of a sweep's jobs, each composed once."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from kvbench.config.compose import composing

_MOST = 1000  # configurations that are held for the launcher; those of larger sweeps are composed again


class Composer:
    """Hydra's composition of jobs. The sweeper looks at a job's configuration before the launcher takes it.

    Args:
        loader: Hydra's loader of configurations.
        master: what the command composes without the sweep's lists.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._held: dict[tuple[str, ...], DictConfig] = {}

    def look(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job, to be read alone. Raises ValueError that names the overrides."""
        key = tuple(overrides)
        if key in self._held:
            return self._held[key]
        composed = self._composed(overrides)
        if len(self._held) < _MOST:
            self._held[key] = composed
        return composed

    def take(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job, to be changed. Raises ValueError that names the overrides."""
        return self._held.pop(tuple(overrides), None) or self._composed(overrides)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        with composing(overrides):
            return self._loader.load_sweep_config(self._master, list(overrides))
