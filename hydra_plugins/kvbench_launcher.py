"""Shims that Hydra's plugin scan finds; it runs at every start, so nothing heavy is imported here.

Hydra wants plugin classes defined in this package. Its scan loads its own plugins anew, so what is made of them has
to be imported here, after that.
"""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from kvbench.sweep import launcher


class FusedLauncher(launcher.FusedLauncher):
    """`hydra/launcher=fused`."""


class FusedSlurmLauncher(launcher.FusedSlurmLauncher):
    """`hydra/launcher=fused_slurm`."""


class FusedSweeper(BasicSweeper):
    """`hydra/sweeper=fused`: Hydra's own, but jobs are not composed twice when the launcher checks them all anyway."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not isinstance(self.launcher, launcher.FusedLauncher):
            super().validate_batch_is_legal(batch)
