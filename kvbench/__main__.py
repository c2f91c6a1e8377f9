"""`python -m kvbench method=ada_pyramidkv budget=128`: compose, check, run; a user's mistake is one line.

Nothing heavy is imported before Hydra has answered `--help`, `--cfg` and tab completion.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kvbench.config import check, register
from kvbench.messages import one_line
from kvbench.paths import conf_dir

_TRACEBACK = "HYDRA_FULL_ERROR"
_MISTAKES = (ValueError, HydraException, OmegaConfBaseException, yaml.YAMLError)
_FULL = os.environ.get(_TRACEBACK) == "1"  # the user wants tracebacks


def _task(cfg: DictConfig) -> float | None:
    try:
        check(cfg, HydraConfig.get().runtime.choices)  # before torch is imported, so that a mistake is answered at once
        from kvbench.jobs import prepare
        from kvbench.runner import run_jobs
        from kvbench.sweep.finish import present, result

        outcomes = run_jobs(prepare(cfg))
        present(outcomes)
        value = result(outcomes)
        if isinstance(value, Exception):
            raise value
        return value
    except _MISTAKES as error:
        if _FULL:
            raise
        _leave(error)


def _leave(error: Exception) -> NoReturn:
    """Say a user's mistake in one line. SystemExit passes through Hydra, which would print more."""
    print(f"kvbench: {one_line(error, sys.argv[1:])}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point of `python -m kvbench` and of the `kvbench` command; exits with 2 on a user's mistake."""
    register()
    os.environ[_TRACEBACK] = "1"  # let Hydra raise instead of printing, so that we can say it in one line
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_task)()
    except _MISTAKES as error:
        if _FULL:
            raise
        _leave(error)
    except OSError as error:
        if _FULL or error.filename is None:
            raise
        print(f"kvbench: paths.outputs: cannot write {error.filename} ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("kvbench: interrupted; issue the same command again to resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
