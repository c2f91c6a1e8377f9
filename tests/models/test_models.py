"""Models: specs and identities without torch, the tiny model, local folders and the hub."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from kvbench import models
from kvbench.common.paths import conf_dir
from kvbench.engine.model_view import view_of
from kvbench.models import ModelSpec
from kvbench.models.cache import ModelCache
from kvbench.models.sources import embedded, kinds, tiny
from kvbench.models.sources.hub import Source
from tests.helpers.model_specs import node, spec, tiny_spec

PRESETS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model folder, in two weight files as large models have them."""
    path = tmp_path_factory.mktemp("local") / "tiny"
    spec("tiny").source.model("float32", "cpu", None).save_pretrained(path, max_shard_size="500KB")
    tiny.tokenizer().save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def copy(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True, parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("name", PRESETS)
def test_preset_passes_its_check(name: str) -> None:
    assert node(name)["name"] == name and not node(name).get("trust_remote_code")
    if name == "local":
        with pytest.raises(ValueError, match=r"^model\.path is not set"):
            spec(name)
    else:
        assert spec(name).label == name


def test_a_kind_is_a_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file in the folder of sources is a new kind, without registration."""
    from kvbench.models import sources

    text = (Path(sources.__file__).parent / "tiny.py").read_text()
    (tmp_path / "sixth.py").write_text(text.replace('return "tiny:"', 'return "sixth:"'))
    before = kinds()
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    assert set(kinds()) == {*before, "sixth"}
    assert spec("tiny", kind="sixth").identity().startswith("sixth:")
    monkeypatch.delitem(sys.modules, "kvbench.models.sources.sixth")


def test_import_and_identity_need_no_torch(folder: Path) -> None:
    code = (
        "import sys, json; from kvbench import models\n"
        "for node in json.loads(sys.argv[1]): models.ModelSpec.from_node(node).identity()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    nodes = [node("tiny"), node("smollm2_135m"), node("local", path=str(folder))]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(nodes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, r"^model\.kind=magic: choose one of embedded, hub, local, random, tiny"),
        ({"dtype": "int8"}, r"^model\.dtype=int8: .*bfloat16"),
        ({"device": "gpu"}, r"^model\.device=gpu: "),
        ({"device": "cuda:x"}, r"^model\.device=cuda:x: "),
        ({"device_map": "balanced"}, r"^model\.device_map=balanced: "),
        ({"device_map": "auto", "device": "cpu"}, r"^model\.device=cpu: .*device_map"),
        ({"max_length": 0}, r"^model\.max_length=0: "),
        ({"max_length": True}, r"^model\.max_length=True: "),
        ({"chat_template": "yes"}, r"^model\.chat_template=yes: "),
        ({"chat_kwargs": "x"}, r"^model\.chat_kwargs=x: "),
        ({"hints": [1]}, r"^model\.hints=\[1\]: "),
        ({"path": "somewhere"}, r"^model\.path=somewhere: .*model=local"),
        ({"revision": "main"}, r"^model\.revision=main: model\.kind=tiny has no revision"),
        ({"trust_remote_code": True}, r"^model\.trust_remote_code=True: model\.kind=tiny has no trust_remote_code"),
        ({"seed": -1}, r"^model\.seed=-1: "),
        ({"seed": 2**64}, r"^model\.seed=18446744073709551616: "),
        ({"seed": 1.5}, r"^model\.seed=1\.5: "),
        ({"kind": "hub", "path": "a/b/c"}, r"^model\.path=a/b/c: .*owner/name"),
        ({"kind": "hub", "path": "a/b", "revision": 3}, r"^model\.revision=3: must be text"),
        ({"kind": "local", "path": 7}, r"^model\.path=7: must be text"),
        ({"kind": "local", "path": "/no/such/folder"}, r"^model\.path=/no/such/folder: no config\.json"),
        ({"kind": "local", "path": "x", "revision": "main"}, r"^model\.revision=main: "),
        ({"kind": "hub", "path": "a/b", "trust_remote_code": "no"}, r"^model\.trust_remote_code=no: "),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_override(changes: dict[str, Any], message: str) -> None:
    changed = node("tiny", **changes)
    if changes.get("kind") in ("hub", "local"):
        changed = {key: value for key, value in changed.items() if key not in ("seed", "dims")}
    with pytest.raises(ValueError, match=message) as caught:
        ModelSpec.from_node(changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"num_key_value_heads": 3}, r"^model\.dims\.num_key_value_heads=3: "),
        ({"head_dim": 15}, r"^model\.dims\.head_dim=15: "),
        ({"vocab_size": 100}, r"^model\.dims\.vocab_size=100: "),
        ({"hidden_size": 0}, r"^model\.dims\.hidden_size=0: "),
        ({"hidden_size": 65}, r"^model\.dims\.hidden_size=65: must be a multiple of num_attention_heads=4"),
        ({"hidden_size": 64.0}, r"^model\.dims\.hidden_size=64\.0: must be an integer"),
        ({"hidden_size": "64"}, r"^model\.dims\.hidden_size=64: must be an integer"),
        ({"num_hidden_layers": 10**9}, r"^model\.dims\.num_hidden_layers=1000000000: must be at most 1000"),
        ({"max_position_embeddings": 10**30}, r"^model\.dims\.max_position_embeddings=1000000000"),
        ({"initializer_range": float("nan")}, r"^model\.dims\.initializer_range=nan: must be a finite number"),
        ({"initializer_range": float("inf")}, r"^model\.dims\.initializer_range=inf: must be a finite number"),
        ({"initializer_range": -0.1}, r"^model\.dims\.initializer_range=-0\.1: "),
        ({"initializer_range": None}, r"^model\.dims\.initializer_range=None: "),
        ({"layers": 3}, r"^model\.dims\.layers: unknown"),
    ],
)
def test_wrong_tiny_dims_are_one_line(dims: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_spec(**dims)


def test_tiny_has_the_dims_of_its_config_and_leaves_torchs_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    loaded = models.load(tiny_spec(num_hidden_layers=3))
    assert torch.equal(torch.rand(3), expected)
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 4, 2)
    assert config.head_dim == 32 and config._attn_implementation == "sdpa"
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.eos_ids == {1} and loaded.name == "tiny" and loaded.max_length == 8192


def test_tiny_weights_follow_the_seed() -> None:
    first, again, other = (models.load(spec("tiny", seed=s)).model.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tiny_tokenizer_round_trips_bytes_and_has_merges() -> None:
    tokenizer = tiny.tokenizer()
    text = "In the end: ü 漢字 \n\n\t of it"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer) == tiny.vocab_size() <= 512
    assert len(tokenizer(" the", add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("name", ["tiny", "smollm2_135m"])
def test_identity_is_stable_and_ignores_where_and_how_it_runs(name: str) -> None:
    base = spec(name).identity()
    assert base == spec(name).identity()
    assert base == spec(name, device="cpu", dtype="bfloat16", name="another").identity()


def test_identity_of_tiny_follows_seed_and_dims() -> None:
    assert len({s.identity() for s in (spec("tiny"), spec("tiny", seed=1), tiny_spec(head_dim=8))}) == 3


def test_identity_of_smollm2_names_the_pinned_checksum() -> None:
    assert embedded.SHA256 in spec("smollm2_135m").identity()


@pytest.mark.parametrize("changed", ["config.json", "tokenizer.json", "header", "first", "last"])
def test_identity_of_a_folder_sees_every_change(folder: Path, tmp_path: Path, changed: str) -> None:
    files = {path.name: bytearray(path.read_bytes()) for path in folder.iterdir()}
    weights = sorted(name for name in files if name.endswith(".safetensors"))[-1]
    before = spec("local", path=str(folder)).identity()
    header = 8 + int.from_bytes(files[weights][:8], "little")
    if changed.endswith(".json"):
        files[changed] += b"\n"
    elif changed == "header":
        files[weights] = files[weights].replace(b'"pt"', b'"np"', 1)
    else:
        files[weights][{"first": header, "last": -1}[changed]] ^= 1
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert spec("local", path=str(tmp_path)).identity() != before


def test_identity_of_a_folder_does_not_depend_on_its_place(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path)
    assert spec("local", path=str(folder)).identity() == spec("local", path=str(tmp_path)).identity()


def test_two_folders_have_two_names_in_tables(folder: Path, tmp_path: Path) -> None:
    names = {"llama-2-7b.v1": "llama-2-7b.v1", "my model (3)": "my_model_3", "模型": "模型", "..x": "x"}
    for name, label in names.items():
        copy(folder, tmp_path / name)
        assert spec("local", path=str(tmp_path / name)).label == label
        assert spec("local", path=f"{tmp_path / name}/").label == label


def test_a_weight_file_cut_short_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short"):
        spec("local", path=str(tmp_path)).identity()


def test_local_folder_loads_what_was_saved(folder: Path) -> None:
    local = spec("local", path=str(folder), device="cpu")
    loaded, original = models.load(local), models.load(spec("tiny"))
    ids = torch.tensor([[0, 10, 20, 30]])
    assert torch.equal(loaded.model(ids).logits, original.model(ids).logits)
    assert loaded.eos_ids == original.eos_ids == models.end_ids(local, loaded.tokenizer).all
    assert loaded.max_length == models.max_length(local) == 8192
    assert loaded.tokenizer.chat_template == original.tokenizer.chat_template
    assert models.max_length(spec("local", path=str(folder), max_length=100)) == 100


def test_dtype_and_several_ends_of_sequence(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    local = spec("local", path=str(tmp_path), dtype="bfloat16", device="cpu")
    loaded = models.load(local)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.eos_ids == {1, 3} == models.end_ids(local, loaded.tokenizer).all


def test_the_cache_loads_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[ModelSpec] = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda spec: loads.append(spec) or load(spec))
    cache = ModelCache()
    first = cache.model(spec("tiny"))
    assert cache.model(spec("tiny")) is first and cache.holds(spec("tiny")) and not cache.holds(spec("tiny", seed=1))
    assert cache.model(spec("tiny", seed=1)) is not first and len(loads) == 2
    assert cache.tokenizer(spec("tiny")) is cache.tokenizer(spec("tiny"))


def test_what_lives_with_a_model_is_not_searched_for_garbage_until_the_model_is_dropped() -> None:
    gc.unfreeze()
    cache = ModelCache()
    loaded = cache.model(spec("tiny"))
    assert gc.get_freeze_count() > 0
    loaded.model.__dict__["itself"] = loaded.model  # only the collector can free a cycle
    model = weakref.ref(loaded.model)
    del loaded
    cache.drop_others(spec("tiny", seed=1))
    assert model() is None and gc.get_freeze_count() == 0
    cache.model(spec("tiny"))
    del cache
    assert gc.get_freeze_count() == 0


def test_a_gpu_that_is_not_there_is_told() -> None:
    wanted = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=rf"^model\.device={wanted}: "):
        models.load(spec("tiny", device=wanted))


def test_hub_out_of_reach_gives_one_line_with_the_remedy(tmp_path: Path) -> None:
    code = (
        "import sys, json; from kvbench import models\n"
        "spec = models.ModelSpec.from_node(json.loads(sys.argv[1])); print(spec.identity())\n"
        "try: models.load(spec)\n"
        "except ValueError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(node("qwen25_7b"))], capture_output=True, text=True, env=environment
    )
    identity, message = done.stdout.strip().splitlines()
    assert identity == "hub:Qwen/Qwen2.5-7B-Instruct@main"
    assert message.startswith("model.path=Qwen/Qwen2.5-7B-Instruct: ")
    assert "hf download Qwen/Qwen2.5-7B-Instruct" in message and "model=local" in message


THINKS = (
    "{% for turn in messages %}<user>{{ turn.content }}{% endfor %}</user>"
    "{% if add_generation_prompt %}<assistant>{% if thinks is defined and not thinks %}none{% endif %}{% endif %}"
)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "</user><assistant>"),
        ({"chat_template": "never"}, ""),
        ({"chat_kwargs": {"thinks": False}}, "</user><assistant>none"),
        ({"chat_kwargs": {"thinks": True, "other": {"a": [1, None, "b"]}}}, "</user><assistant>"),
        ({"chat_kwargs": {"chat_template": THINKS.replace("<assistant>", "<a>")}}, "</user><a>"),
    ],
)
def test_what_comes_before_an_answer_follows_the_settings_of_the_template(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], text: str
) -> None:
    """Passes of a method's own, such as those of KVzip, ask for it; prompts are rendered with the same settings."""
    monkeypatch.setattr(tiny, "TEMPLATE", THINKS)
    loaded = models.load(spec("tiny", **settings))
    view = view_of(loaded.model, loaded.engine_tokenizer)
    assert view.answer_prefix() == loaded.tokenizer.encode(text, add_special_tokens=False)
    assert loaded.tokenizer.chat_template == THINKS


def test_a_hub_without_connection_is_asked_once_and_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client tries for half a minute, with a line for each try, and a command needs the files several times."""
    asked = []

    def download(*args: object, **settings: object) -> str:
        asked.append(args)
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 4/5].")
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: pytest.fail("asked again"))
    source = Source(path="nobody/no-such-model")
    line = "^model.path=nobody/no-such-model: cannot be loaded: the hub cannot be reached.*hf download nobody/"
    with caplog.at_level("WARNING"):
        assert source.identity() == "hub:nobody/no-such-model@main"
        for part in (source.config, source.tokenizer, lambda: source.model("auto", "cpu", None)):
            with pytest.raises(ValueError, match=line):
                part()
    assert len(asked) == 1 and caplog.text == ""
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert source.identity() and len(asked) == 2, "the network may be back"


def test_hub_identity_is_the_commit_of_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *a, **k: f"/hub/snapshots/{commit}/config.json"
    )
    source = spec("qwen3_8b").source
    assert source.identity() == f"hub:Qwen/Qwen3-8B@{commit}"
    files = source.files()  # type: ignore[attr-defined]
    assert (files.location, files.revision) == ("Qwen/Qwen3-8B", commit)  # what is loaded is what was named
