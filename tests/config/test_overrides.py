"""Hundreds of odd overrides: each one is either a configuration that passes all checks, or one line that names it."""

from __future__ import annotations

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from kvbench import config
from kvbench.config.compose import composing, inspect
from kvbench.run.jobs import check_config

VALUES = (
    "", "null", "nan", "inf", "-inf", "-1", "0", "1", "1.5", "1e40", "1" * 40, "-" + "1" * 40, "true", "false", "abc",
    "[]", "[5]", "[a]", "[null]", "[[1]]", "{}", "{a:1}", "[{_target_:os.system}]", "{_target_:os.system}", "'a b'",
    "a=b", "~/x", "中文", "'中文'", "../x", "/etc/passwd", "'a/b'", "'a\\nb'", "${seed}", "${nope}", "${oc.env:HOME}",
    "'${oc.env:HF_TOKEN,x}'", "${now:%Y}", "${hydra:runtime.cwd}", "${oc.select:nope,1}", "a,b", "range(5,1)",
    "range(1,100000000)", "glob(zzz*)", "glob(zz*),64", "choice()", "interval(0,1)", "sort(3,2)", "int(1.5)", "0x10",
    "1_000", "0b1", "٣", "1\x00", "\x1b[2J", "'\u202e'", "\ud800", "x" * 20_000, "(", "]", "'", '"', "\\", "@", "a@b",
    "---", "?",
)  # fmt: skip
KEYS = (
    "budget", "seed", "limit", "shard", "kernel", "retry_oom", "threads", "progress", "engine.graph", "engine.cache",
    "engine.max_rows", "engine.max_prompts", "paths.outputs", "method", "model", "benchmark", "experiment",
    "method.window", "method.kernel_size", "method.pooling", "method.score", "method.name", "model.path", "model.dtype",
    "model.seed", "model.max_length", "model.chat_kwargs", "model.hints", "model.dims.hidden_size", "model.kind",
    "model.dims", "model.trust_remote_code", "benchmark.lengths", "benchmark.depths", "benchmark.stop",
    "benchmark.num_seeds", "benchmark.scores", "benchmark.haystack", "benchmark.needle", "benchmark.chat",
    "benchmark._target_", "benchmark.name", "benchmark.max_new_tokens", "hydra.run.dir", "hydra.mode",
    "hydra.sweeper.params", "hydra.sweeper.max_batch_size", "hydra.launcher", "hydra/launcher", "hydra.callbacks",
    "hydra.verbose", "engine.fused",
)  # fmt: skip
OTHERS = (
    "+engine.max_row=3", "hydra.job.chdir=true", "+hydra.callbacks.x._target_=os.system", "hydra.searchpath=[pkg://x]",
    "hydra/job_logging=none", "hydra/job_logging=nope", "hydra.job_logging.version=2", "hydra/hydra_logging=colorlog",
    "hydra.launcher._target_=os.system", "hydra.sweeper._target_=os.system", "hydra/sweeper=basic", "~hydra/launcher",
    "+hydra.job.env_set.X=1", "hydra.job.env_copy=[HOME]", "hydra.job.name=../../x", "hydra.output_subdir=x",
    "hydra={}", "+hydra.x=1", "~seed", "~model", "~method.window", "~engine", "++new=1", "+new.a.b=1", "model@x=tiny",
    "+model@engine=tiny", "method@_global_=h2o", "=3", "budget", "budget=", "=", "", " ", "a b=1", "..=1", "../x=1",
    "model/shape=llama31_8b", "model=shape/llama31_8b", "model=../method/h2o", "method=/etc/passwd", "budget==3",
    "method=[h2o]", "benchmark=[needle,ruler]", "budget=64 budget=65", "model.dims.hidden_size=65",
    "+_target_=os.system",
    "model.dims.initializer_range=nan", "+benchmark._args_=[1]", "+benchmark._partial_=true", "+method._convert_=all",
    "+model.hints.kernel_size={_target_:os.system}", "+model.chat_kwargs.x=${oc.env:HOME}", "budget=64.0", "budget=1.0",
)  # fmt: skip


_EVERY = 10


@pytest.fixture(autouse=True)
def registered() -> None:
    config.register()
    GlobalHydra.instance().clear()


def complaint(overrides: list[str]) -> str:
    """Compose and check like a run does, up to the point where files would be read; return the message, or ""."""
    try:
        composed = inspect(overrides)
        with composing(overrides):
            choices = OmegaConf.to_container(composed.hydra.runtime.choices)
            with open_dict(composed):
                del composed["hydra"]
            check_config(composed, choices)  # type: ignore[arg-type]
    except ValueError as error:
        return str(error) or "an empty message"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_an_odd_value_is_one_line_or_works(key: str) -> None:
    start = KEYS.index(key) % _EVERY  # every key gets a tenth of the values, every value a tenth of the keys
    for value in VALUES[start::_EVERY]:
        override = f"{key}={value}"
        message = complaint(["model=tiny", "budget=100", override])
        assert "\n" not in message and len(message) < 2000, (override, message)


@pytest.mark.parametrize("override", OTHERS)
def test_an_odd_override_is_one_line_or_works(override: str) -> None:
    message = complaint(["model=tiny", *override.split()])
    assert "\n" not in message, message
