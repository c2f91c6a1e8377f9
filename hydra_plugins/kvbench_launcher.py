"""Shim that Hydra's plugin scan finds; it runs at every start, so nothing heavy is imported here."""

from kvbench.sweep import launcher


class FusedLauncher(launcher.FusedLauncher):
    """`hydra/launcher=fused`. Hydra wants plugin classes defined in this package."""
