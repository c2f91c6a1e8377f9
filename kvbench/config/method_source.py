"""Methods as Hydra finds them: `method=ada_snapkv` with what its file inherits, and `method=ada_snapkv+kivi`.

Hydra looks for an option of a group in one source after the other. This source stands before the folder of YAML files
and offers each method complete, so that overrides, sweeps and experiments see one node without inheritance.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from kvbench.methods.read import method_files, read_method

_SCHEME = "kvbench-methods"
_GROUP = "method"


class MethodSource(ConfigSource):
    """The group `method` of a configuration folder, composed."""

    @staticmethod
    def scheme() -> str:
        return _SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a method as one node. Raises ValueError, in one line, for a combination that cannot be."""
        node = read_method(Path(self.path) / _GROUP, _name(config_path) or config_path)
        return ConfigResult(provider=self.provider, path=self.full_path(), config=node, header={"package": None})

    def is_group(self, config_path: str) -> bool:
        return config_path == _GROUP

    def is_config(self, config_path: str) -> bool:
        name = _name(config_path)
        return name is not None and ("+" in name or name in method_files(Path(self.path) / _GROUP))

    def available(self) -> bool:
        return (Path(self.path) / _GROUP).is_dir()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return nothing: the folder itself lists its files, and combinations are too many."""
        return []


class MethodSearchPath(SearchPathPlugin):
    """The place of `MethodSource` among Hydra's sources: before the main folder, whichever that is."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = next((element.path for element in search_path.get_path() if element.provider == "main"), None)
        folder = (main or "").removeprefix("file://")
        if folder and "://" not in folder and (Path(folder) / _GROUP).is_dir():
            search_path.prepend("kvbench", f"{_SCHEME}://{folder}", anchor=SearchPathQuery(provider="main"))


def _name(config_path: str) -> str | None:
    """Return the name of a method from the path of an option, None for another path."""
    group, _, name = config_path.removesuffix(".yaml").partition("/")
    return name if group == _GROUP and name and "/" not in name else None
