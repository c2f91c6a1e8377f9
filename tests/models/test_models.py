"""Models: identity and checks without torch, the tiny model, local folders and the hub."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from kvbench import models
from kvbench.models import embedded, pretrained, tiny
from kvbench.paths import conf_dir

COMMON = ["name", "kind", "path", "revision", "dtype", "device", "device_map", "trust_remote_code"]
COMMON += ["max_length", "chat_template", "chat_kwargs", "hints"]
PRESETS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


def preset(preset_name: str, /, **changes) -> dict:
    cfg = yaml.safe_load((conf_dir() / "model" / f"{preset_name}.yaml").read_text())
    return {**cfg, **changes}


def with_dims(**dims) -> dict:
    cfg = preset("tiny")
    return {**cfg, "dims": {**cfg["dims"], **dims}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A local model folder, in two weight files as big models have them."""
    path = tmp_path_factory.mktemp("local") / "tiny"
    tiny.model(preset("tiny")).save_pretrained(path, max_shard_size="500KB")
    tiny.tokenizer().save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_common_keys_and_passes_its_check(name):
    cfg = preset(name)
    assert list(cfg)[: len(COMMON)] == COMMON and cfg["name"] == name
    assert cfg["trust_remote_code"] is False
    if name == "local":
        with pytest.raises(ValueError, match=r"^model\.path is not set"):
            models.check(cfg)
    else:
        models.check(cfg)


def test_import_and_identity_need_no_torch(folder):
    code = (
        "import sys, json; from kvbench import models\n"
        "for cfg in json.loads(sys.argv[1]): models.identity(cfg)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    cfgs = [preset("tiny"), preset("smollm2_135m"), preset("local", path=str(folder))]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(cfgs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, r"^model\.kind=magic: "),
        ({"dtype": "int8"}, r"^model\.dtype=int8: .*bfloat16"),
        ({"device": "gpu"}, r"^model\.device=gpu: "),
        ({"device": "cuda:x"}, r"^model\.device=cuda:x: "),
        ({"device_map": "balanced"}, r"^model\.device_map=balanced: "),
        ({"device_map": "auto", "device": "cpu"}, r"^model\.device=cpu: .*device_map"),
        ({"max_length": 0}, r"^model\.max_length=0: "),
        ({"chat_template": "yes"}, r"^model\.chat_template=yes: "),
        ({"path": "somewhere"}, r"^model\.path=somewhere: .*model=local"),
        ({"kind": "hub", "path": "a/b/c"}, r"^model\.path=a/b/c: .*owner/name"),
        ({"kind": "local", "path": "/no/such/folder"}, r"^model\.path=/no/such/folder: no config\.json"),
        ({"kind": "local", "path": "x", "revision": "main"}, r"^model\.revision=main: "),
    ],
)
def test_check_names_the_override(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.check(preset("tiny", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"num_key_value_heads": 3}, r"^model\.dims\.num_key_value_heads=3: "),
        ({"head_dim": 15}, r"^model\.dims\.head_dim=15: "),
        ({"vocab_size": 100}, r"^model\.dims\.vocab_size=100: "),
        ({"hidden_size": 0}, r"^model\.dims\.hidden_size=0: "),
        ({"layers": 3}, r"^model\.dims\.layers: unknown"),
    ],
)
def test_check_of_tiny_dims(dims, message):
    with pytest.raises(ValueError, match=message):
        models.check(with_dims(**dims))


def test_tiny_has_the_dims_of_its_config_and_leaves_torchs_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    loaded = models.load(with_dims(num_hidden_layers=3))
    assert torch.equal(torch.rand(3), expected)
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 4, 2)
    assert config.head_dim == 32 and config._attn_implementation == "sdpa"
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.eos_ids == {1} and loaded.name == "tiny" and loaded.max_length == 8192


def test_tiny_weights_follow_the_seed():
    first, again, other = (models.load(preset("tiny", seed=s)).model.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tiny_tokenizer_round_trips_bytes_and_has_merges():
    tokenizer = tiny.tokenizer()
    text = "In the end: ü 漢字 \n\n\t of it"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer) == tiny.vocab_size() <= 512
    assert len(tokenizer(" the", add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("name", ["tiny", "smollm2_135m"])
def test_identity_is_stable_and_ignores_where_and_how_it_runs(name):
    base = models.identity(preset(name))
    assert base == models.identity(copy.deepcopy(preset(name)))
    assert base == models.identity(preset(name, device="cpu", dtype="bfloat16", name="another"))


def test_identity_of_tiny_follows_seed_and_dims():
    found = {models.identity(cfg) for cfg in (preset("tiny"), preset("tiny", seed=1), with_dims(head_dim=8))}
    assert len(found) == 3


def test_identity_of_smollm2_names_the_pinned_checksum():
    assert embedded.SHA256 in models.identity(preset("smollm2_135m"))


@pytest.mark.parametrize("changed", ["config.json", "tokenizer.json", "header", "first", "last", "size"])
def test_identity_of_a_folder_sees_every_change(folder, tmp_path, changed):
    files = {path.name: bytearray(path.read_bytes()) for path in folder.iterdir()}
    weights = sorted(name for name in files if name.endswith(".safetensors"))[-1]
    before = models.identity(preset("local", path=str(folder)))
    header = 8 + int.from_bytes(files[weights][:8], "little")
    if changed.endswith(".json"):
        files[changed] += b"\n"
    elif changed == "size":
        files[weights] += b"\0"
    else:
        files[weights][{"header": 10, "first": header, "last": -1}[changed]] ^= 1
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert models.identity(preset("local", path=str(tmp_path))) != before


def test_identity_of_a_folder_does_not_depend_on_its_place(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    identities = {models.identity(preset("local", path=str(path))) for path in (folder, tmp_path)}
    assert len(identities) == 1


def test_a_weight_file_cut_short_is_told(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short"):
        models.identity(preset("local", path=str(tmp_path)))


def test_local_folder_loads_what_was_saved(folder):
    cfg = preset("local", path=str(folder), device="cpu")
    loaded, made = models.load(cfg), models.load(preset("tiny"))
    ids = torch.tensor([[0, 10, 20, 30]])
    assert torch.equal(loaded.model(ids).logits, made.model(ids).logits)
    assert loaded.eos_ids == made.eos_ids == models.eos_ids(cfg, loaded.tokenizer)
    assert loaded.max_length == models.max_length(cfg) == 8192
    assert loaded.tokenizer.chat_template == made.tokenizer.chat_template
    assert models.max_length({**cfg, "max_length": 100}) == 100


def test_dtype_and_several_ends_of_sequence(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    cfg = preset("local", path=str(tmp_path), dtype="bfloat16", device="cpu")
    loaded = models.load(cfg)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.eos_ids == {1, 3} == models.eos_ids(cfg, loaded.tokenizer)


def test_a_gpu_that_is_not_there_is_told():
    wanted = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=rf"^model\.device={wanted}: "):
        models.load(preset("tiny", device=wanted))


def test_hub_out_of_reach_gives_one_line_with_the_remedy(tmp_path):
    cfg = preset("qwen25_7b")
    code = (
        "import sys, json; from kvbench import models\n"
        "cfg = json.loads(sys.argv[1]); print(models.identity(cfg))\n"
        "try: models.load(cfg)\n"
        "except ValueError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cfg)], capture_output=True, text=True, env=environment
    )
    identity, message = done.stdout.strip().splitlines()
    assert identity == "hub:Qwen/Qwen2.5-7B-Instruct@main"
    assert message.startswith("model.path=Qwen/Qwen2.5-7B-Instruct: ")
    assert "huggingface-cli download Qwen/Qwen2.5-7B-Instruct" in message and "model=local" in message


def test_hub_identity_is_the_commit_of_the_snapshot(monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *a, **k: f"/hub/snapshots/{commit}/config.json"
    )
    cfg = preset("qwen3_8b")
    assert models.identity(cfg) == f"hub:Qwen/Qwen3-8B@{commit}"
    assert pretrained.source(cfg) == ("Qwen/Qwen3-8B", commit)  # what is loaded is what was named
