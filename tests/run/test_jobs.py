"""Jobs: a composed configuration is checked by the parts of its method before anything is fetched or loaded."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from kvbench.run.jobs import settle


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget=32"], "budget=32: ada_pyramidkv always keeps 32 tokens (method.window=32)"),
        (["method=streaming_llm", "budget=4"], "budget=4: streaming_llm always keeps 4 tokens (method.sinks=4)"),
        (["method=snapkv", "budget=9", "method.window=4", "method.sinks=5"], "(method.sinks=5, method.window=4)"),
        (["method.window=-1"], "method.window=-1: must be at least 1"),
        (["method.kernel_size=4"], "method.kernel_size=4: must be odd"),
        (["method.pooling=min"], "method.pooling=min: must be one of avg, max, none"),
        (["method.floor=1.2"], "method.floor=1.2: must be at most 1"),
        (["method=h2o_decode", "method.window=-3"], "method.window=-3: must be at least 0"),
        (["method=h2o", "method.reduce=median"], "method.reduce=median: must be one of mean, max, sum"),
        (["method=pyramidkv", "method.allocation=half"], "method.allocation=half: must be one of exact, reference"),
        (["method=kivi", "method.bits=3"], "method.bits=3: must be 2, 4 or 8"),
    ],
)
def test_impossible_dials_are_one_line(compose: Callable[..., DictConfig], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settle(compose(*overrides))
    assert "\n" not in str(caught.value)
