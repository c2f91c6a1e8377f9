"""The token ids of every LongBench protocol on our own texts, against the hashes stored in tests/golden/."""

from __future__ import annotations

import json

import pytest

from tests.golden import make
from tests.helpers.tokenizers_for_tests import ALL

STORED = json.loads((make.HERE / "prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ALL)
def test_prompts_have_the_stored_ids(name: str) -> None:
    assert make.prompt_hashes(name) == STORED[name]
