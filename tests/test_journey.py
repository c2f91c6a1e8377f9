"""The path of docs/journey.md: it is the call stacks of a real run at the document's stations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "journey.md").read_text(encoding="utf-8")
STATIONS = re.findall(r"^\| \d+ \| .* \| `([\w.]+)` \|$", TEXT, re.MULTILINE)
PATH = re.findall(r"^\| `([\w/.]+)` \|", TEXT.partition("## The path")[2].partition("## Next")[0], re.MULTILINE)
CODE = """
import json, sys
from tests.helpers.journey import trace
arguments = json.loads(sys.argv[1])
journey = trace(*arguments)
print("stacks:", json.dumps({name: journey.stacks.get(name) for name in arguments[1]}))
"""


def test_the_path_is_that_of_a_run(tmp_path: Path) -> None:
    overrides = ["model=tiny", "method=snapkv", "budget=128", "benchmark.lengths=[300]", "benchmark.depths=[50]"]
    overrides += [
        "kernel=torch",
        "engine.fused=false",
        "benchmark.max_new_tokens=4",
        "progress=false",
        f"paths.outputs={tmp_path}",
    ]
    command = [sys.executable, "-c", CODE, json.dumps([overrides, STATIONS])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("stacks: ")]
    stacks = json.loads(line.removeprefix("stacks: "))
    assert [name for name, stack in stacks.items() if stack is None] == [], "stations that the run does not reach"
    assert list(dict.fromkeys(file for stack in stacks.values() for file in stack)) == PATH
    assert len(PATH) <= 30


def test_the_files_that_the_document_names_exist() -> None:
    for name in set(re.findall(r"`((?:kvbench|kernels|[a-z]+)/[\w/.]*)`", TEXT)):
        assert (ROOT / name).exists() or (ROOT / "kvbench" / name).exists() or name.startswith("reports/"), name
