"""Every YAML in conf/, found by glob: it composes, it checks, and none of its settings is ignored."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from kvbench import config, models, prompts
from kvbench.benchmarks.base import ModelFacts, benchmarks_of
from kvbench.config.annotations import settings_of
from kvbench.config.groups import shipped
from kvbench.methods.composition import reached
from kvbench.methods.dials import ABOUT
from tests.helpers.methods import load, test_overrides

METHODS, BENCHMARKS = sorted(config.options("method")), sorted(config.options("benchmark"))
MODELS, EXPERIMENTS = sorted(config.options("model")), sorted(config.options("experiment"))


@pytest.mark.parametrize("group", config.GROUPS)
def test_the_name_is_the_file(group):
    for name in config.options(group):
        assert config.defaults(group, name).name == name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from(name: str) -> None:
    """The paper with its arXiv id if there is one, the code with its commit, and what was found equal."""
    about = config.method(name).about[name]
    assert set(about) | {"acts"} == set(ABOUT) and about.get("acts", "prefill") == "prefill"
    assert re.search(r"arXiv \d{4}\.\d{5}", about["paper"]) or about["paper"].startswith("none")
    assert about["code"] == "none published" or all(
        re.fullmatch(r"[\w.-]+/[\w.-]+( [0-9a-f]{7})?", code) for code in about["code"].split(", ")
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_dial_reaches_a_part(name):
    """A dial that no part interpolates would be a flag that does nothing."""
    method = config.method(name)
    assert reached(method.dials, method.parts) == set(method.dials)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_loads_and_composes(name, compose):
    method = load(name)
    assert method.name == name
    cfg = compose(f"method={name}", "model=tiny", "budget=128", *test_overrides(name))
    config.check(cfg)
    assert OmegaConf.to_container(cfg.method, resolve=True)


@pytest.mark.parametrize("name", METHODS)
def test_dials_hold_from_both_sides(name, compose):
    """`method.window=9` and `load_method(name, window=9)` are the same method."""
    changed = {"window": 9, "kernel_size": 3, "pooling": "avg", "reduce": "max", "sinks": 2, "floor": 0.5, "beta": 7}
    changed |= {"normalize": True, "allocation": "reference", "bits": 4, "group_size": 16, "residual": 64}
    node = config.defaults("method", name)
    dials = {k: v for k, v in changed.items() if k in node}
    from kvbench.methods.dials import split_dials
    from kvbench.methods.load import build

    cfg = compose(f"method={name}", *test_overrides(name), *(f"method.{k}={v}" for k, v in dials.items()))
    assert build(cfg.method, split_dials(node)) == load(name, **dials)
    if dials:
        assert load(name, **dials) != load(name)


def test_a_models_hint_is_a_default_and_no_more(compose):
    assert compose("model=smollm2_135m", "method=snapkv").method.kernel_size == 21
    assert compose("model=tiny", "method=snapkv").method.kernel_size == 7
    assert compose("model=smollm2_135m", "method=snapkv", "method.kernel_size=5").method.kernel_size == 5


@pytest.mark.parametrize("name", MODELS)
def test_every_model_composes(name, compose, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_text("{}")
    cfg = compose(f"model={name}", *([f"model.path={tmp_path}"] if name == "local" else []))
    config.check(cfg)
    models.ModelSpec.from_node(OmegaConf.to_container(cfg.model))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_composes_and_builds(name, compose):
    benchmark = hydra.utils.instantiate(compose(f"benchmark={name}").benchmark)
    assert benchmark.name == name
    parts = benchmarks_of(benchmark, ModelFacts("tiny"))
    for part in parts:
        assert part.name.startswith(name) and prompts.span_of(part) in ("prompt", "context")
        assert part.headline in str(part.scoring()["metrics"])
    assert len({part.name for part in parts}) == len(parts)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name, compose):
    cfg = compose(f"experiment={name}")
    config.check(cfg)
    text = OmegaConf.load(config.options("experiment")[name])
    params = OmegaConf.select(text, "hydra.sweeper.params") or {}
    for method in str(params.get("method", "snapkv")).split(","):
        assert method == "glob(*)" or all(part in METHODS for part in method.split("+"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
        ("from kvbench.benchmarks.base import Part", "ImportError: cannot import name 'Part'"),
        ("def x(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('first\\nsecond')", "ValueError: first second"),
        ("", "AttributeError: "),
    ],
)
def test_a_benchmark_file_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "broken_benchmark.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_benchmark", raising=False)
    settings_of.cache_clear()
    with pytest.raises(ValueError) as caught:
        settings_of("broken_benchmark.Mine")
    message = str(caught.value)
    assert message.startswith(f"benchmark._target_=broken_benchmark.Mine: cannot be imported: {reason}")
    assert "\n" not in message


def test_the_seed_reaches_the_benchmark(compose):
    assert compose("seed=5").benchmark.seed == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget=0"], "budget=0: tokens per KV head must be at least 1"),
        (["budget=-4"], "budget=-4: "),
        (["budget=1.01"], "budget=1.01: a share"),
        (["budget=true"], "budget=True: give tokens"),
        (["budget=many"], "budget=many: give tokens"),
        (["budget=null"], "budget=None: give tokens"),
        (["method.window=x"], "method.window=x: must be an integer"),
        (["method.window=1.5"], "method.window=1.5: must be an integer"),
        (["method.window=3000000000"], "method.window=3000000000: must be between -2147483647 and 2147483647"),
        (["method=streaming_llm_decode", f"method.buffer={10**20}"], f"method.buffer={10**20}: must be between"),
        (["method=prefixkv_decode", f"method.distance={-(10**20)}"], f"method.distance={-(10**20)}: must be between"),
        ([f"budget={10**20}"], f"budget={10**20}: tokens per KV head must be at most 2147483647"),
        ([f"seed={2**63}"], f"benchmark.seed={2**63}: must be between"),
        (["method.normalize=3"], "method.normalize=3: must be true or false"),
        (["+method.windw=3"], "method.windw=3: ada_pyramidkv has no dial 'windw'. Did you mean 'window'?"),
        (["+modle.dtype=x"], "modle={'dtype': 'x'}: no such setting. Did you mean 'model'?"),
        (["+benchmark.depth=[1]"], "benchmark.depth=[1]: no such setting. Did you mean 'depths'?"),
        (["benchmark.lengths=1000"], "benchmark.lengths=1000: must be a list"),
        (["model.trust_remote_code=3"], "model.trust_remote_code=3: model.kind=embedded has no trust_remote_code"),
        (["+model.hints.kernel=5"], "model.hints.kernel=5: no method reads it. Did you mean 'kernel_size'?"),
        (["engine.cache=paged"], "engine.cache=paged: must be one of ragged, masked"),
        (["kernel=cuad"], "kernel=cuad: no such kernel. Did you mean 'cuda'?"),
        (["kernel=sdpa", "engine.cache=masked"], "kernel=sdpa: engine.cache=masked attends by torch alone"),
        (["engine.graph=on"], "engine.graph=on: must be one of auto, true, false"),
        (["engine.fused=1"], "engine.fused=1: must be one of auto, true, false"),
        (["engine.graph=true", "engine.cache=masked"], "engine.graph=true: engine.cache=masked works on the host"),
        (["engine.graph=true", "kernel=torch"], "engine.graph=true: kernel=torch works on the host in every step"),
        (["limit=0"], "limit=0: must be at least 1"),
        (["seed=-1"], "seed=-1: must be at least 0"),
    ],
)
def test_impossible_settings_are_one_line(compose, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)) as info:
        config.check(compose(*overrides))
    assert "\n" not in str(info.value)


def test_an_option_inherits_from_those_that_its_defaults_name() -> None:
    own, base = shipped("benchmark", "needle_1k"), shipped("benchmark", "needle")
    assert own == base | {"name": "needle_1k", "lengths": [1000], "num_seeds": 3}
