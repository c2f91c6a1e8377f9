"""`python -m kvbench method=ada_pyramidkv budget=128`: compose, check, run; a user's mistake is one line.

Nothing heavy is imported before Hydra has answered `--help`, `--cfg` and tab completion.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kvbench.cli.arguments import check_mode, command, expand
from kvbench.cli.errors import Unfinished
from kvbench.cli.signals import Preempted, preemptible
from kvbench.config import check, register
from kvbench.config.messages import one_line
from kvbench.paths import conf_dir

_TRACEBACK = "HYDRA_FULL_ERROR"
_MISTAKES = (ValueError, HydraException, OmegaConfBaseException, yaml.YAMLError)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # Python does not always say for which file
_FULL = os.environ.get(_TRACEBACK) == "1"  # the user wants tracebacks


def _task(cfg: DictConfig) -> float | None:
    try:
        hydra_cfg = HydraConfig.get()
        check_mode(hydra_cfg.mode == RunMode.MULTIRUN, list(hydra_cfg.overrides.hydra))
        check(cfg, hydra_cfg.runtime.choices)  # before torch is imported, so that a mistake is answered at once
        from kvbench import store
        from kvbench.cli.finish import present, result
        from kvbench.run.jobs import prepare
        from kvbench.run.runner import run_jobs

        jobs = prepare(cfg)
        if hydra_cfg.mode == RunMode.RUN:  # a job of launcher=basic does not know the others of its sweep
            runs = [job.folder for job in jobs]
            store.write_plan(cfg.paths.outputs, command(sys.argv[1:]), runs)
        outcomes = run_jobs(jobs)
        present(outcomes)
        value = result(outcomes)
        if isinstance(value, Exception):
            raise value
        return value
    except _MISTAKES as error:
        if _FULL:
            raise
        _leave(error)
    except OSError as error:  # before Hydra sees it, which would print more
        if _FULL or not _is_about_files(error):
            raise
        _cannot_write(error)


def _leave(error: Exception) -> NoReturn:
    """Say a user's mistake in one line. SystemExit passes through Hydra, which would print more."""
    _say(one_line(error, sys.argv[1:]))
    sys.exit(2)


def _is_about_files(error: OSError) -> bool:
    return error.filename is not None or error.errno in _NO_SPACE


def _cannot_write(error: OSError) -> NoReturn:
    _say(f"paths.outputs: cannot write {error.filename or 'there'} ({error.strerror})")
    sys.exit(2)


def main() -> None:
    """Entry point of `python -m kvbench` and of the `kvbench` command.

    Exits with 2 on a user's mistake, 1 when runs elsewhere did not end well, 128 + n when signal n ended it.
    """
    register()
    sys.argv[1:] = expand(sys.argv[1:])
    logging.raiseExceptions = _FULL  # the log file on a full disk: what matters still is said on the console
    os.environ[_TRACEBACK] = "1"  # let Hydra raise instead of printing, so that we can say it in one line
    try:
        with preemptible():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_task)()
    except _MISTAKES as error:
        if _FULL:
            raise
        _leave(error)
    except Unfinished as error:
        _say(str(error))
        sys.exit(1)
    except OSError as error:
        if _FULL or not _is_about_files(error):
            raise
        _cannot_write(error)
    except Preempted as stop:
        _say(f"preempted, {stop}; issue the same command again to resume")
        raise
    except KeyboardInterrupt:
        _say("interrupted; issue the same command again to resume")
        sys.exit(130)


def _say(text: str) -> None:
    print(f"kvbench: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
