"""Shims that Hydra's plugin scan finds; it runs at every start, so nothing heavy is imported here.

Hydra requires plugin classes to be defined in this package.
"""

from kvbench.sweep import launcher, sweeper


class FusedLauncher(launcher.FusedLauncher):
    """The launcher `hydra/launcher=fused`."""


class FusedSlurmLauncher(launcher.FusedSlurmLauncher):
    """The launcher `hydra/launcher=fused_slurm`."""


class FusedSweeper(sweeper.FusedSweeper):
    """The sweeper `hydra/sweeper=fused`."""
