"""Levels of the log: our own messages, and of libraries only warnings, in a run, a verb and a task of Slurm."""

from __future__ import annotations

import subprocess
import sys

import pytest

TALK = """
import logging
for name in ("kvbench.engine.decode", "kvbench_kernels.build", "fontTools.subset", "a_library.of_tomorrow"):
    logging.getLogger(name).info("info of %s", name)
    logging.getLogger(name).warning("warning of %s", name)
"""
HYDRA = """
import logging.config, yaml
from kvbench.common.paths import conf_dir
settings = yaml.safe_load((conf_dir() / "hydra" / "{0}" / "kvbench.yaml").read_text())
settings["handlers"].pop("file", None)
settings["root"]["handlers"] = ["console"]
logging.config.dictConfig(settings)
"""
SET_UPS = {
    "a verb": "from kvbench.common.command import log_messages; log_messages()",
    "a task": "from kvbench.common.command import log_messages; log_messages('[%(asctime)s] %(message)s', force=True)",
    "a run": HYDRA.format("job_logging"),
    "the start of a run": HYDRA.format("hydra_logging"),
}


@pytest.mark.parametrize("set_up", SET_UPS)
def test_libraries_only_warn(set_up: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SET_UPS[set_up] + "\n" + TALK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    shown = [line.rpartition("] ")[2] for line in done.stderr.splitlines()]
    ours, theirs = ("kvbench.engine.decode", "kvbench_kernels.build"), ("fontTools.subset", "a_library.of_tomorrow")
    expected = [f"{level} of {name}" for name in ours for level in ("info", "warning")]
    assert shown == expected + [f"warning of {name}" for name in theirs]
