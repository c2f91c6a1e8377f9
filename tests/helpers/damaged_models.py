"""Model folders with one fault each, made from a sound one."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kvbench.models.sources import tiny
from tests.helpers.model_specs import tiny_spec

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], object]
CASES: dict[str, tuple[Damage, str]] = {}  # name: (what damages the folder, pattern of the message)


def sound(folder: Path) -> None:
    """Save a small Llama with its tokenizer, in one weight file."""
    tiny_spec(num_hidden_layers=3).source.model("float32", "cpu", None).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def config(**changes: Any) -> Damage:
    """Return a damage that changes keys of config.json."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Return a damage that changes the tensors of the weight file."""

    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Return a damage that changes the header of the weight file, and leaves the numbers alone."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + length])
        text = json.dumps(change(content) or content).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def content(name: str, data: bytes | str) -> Damage:
    """Return a damage that gives a file another content."""
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def cut(name: str, keep: float) -> Damage:
    """Return a damage that keeps the first part of a file only."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def gone(name: str) -> Damage:
    """Return a damage that removes a file."""
    return lambda folder: (folder / name).unlink()


def both(*damages: Damage) -> Damage:
    """Return several damages in one."""
    return lambda folder: [damage(folder) for damage in damages]


def sharded(change: Callable[[Path, dict[str, str]], Any]) -> Damage:
    """Return a damage of a model in two weight files, which changes the map from tensors to files."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        where = {name: f"model-{1 + (i >= len(names) // 2)}.safetensors" for i, name in enumerate(names)}
        for file in sorted(set(where.values())):
            part = {name: tensors[name] for name in names if where[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        index = change(folder, where) or _index(where)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def pipe(name: str) -> Damage:
    """Return a damage that puts a named pipe in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def link(name: str) -> Damage:
    """Return a damage that puts a link to nowhere in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/no/such/file")

    return damage


def _overlap(entries: dict[str, Any]) -> None:
    for entry in entries.values():
        if entry.get("shape") == [64]:
            entry["data_offsets"] = [0, 256]


def first(entries: dict[str, Any]) -> Any:
    return entries[next(name for name in entries if name != "__metadata__")]


def _prefixed(prefix: str) -> Damage:
    return weights(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def _without(part: str) -> Damage:
    return weights(lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def _cast(dtype: torch.dtype) -> Damage:
    return weights(lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})


def _index(where: object) -> dict[str, object]:
    return {"metadata": {}, "weight_map": where}


def _lose(name: str) -> Callable[[Path, dict[str, str]], None]:
    return lambda folder, where: (folder / name).unlink()


# Weights that are not those of the model.
for prefix in ("base_model.", "base_model.model.", "_orig_mod.", "module.", "transformer."):
    CASES[f"prefix {prefix}"] = (_prefixed(prefix), rf"missing: lm_head\.weight, .*no place for: {prefix}")
CASES |= {
    "no lm_head": (_without("lm_head"), r"missing: lm_head\.weight;"),
    "no embeddings": (_without("embed_tokens"), r"missing: model\.embed_tokens\.weight;"),
    "no layer 1": (_without("layers.1."), r"missing: model\.layers\.1\..* and 6 more"),
    "no last norm": (_without("model.norm"), r"missing: model\.norm\.weight;"),
    "no tensor at all": (weights(lambda tensors: {}), "holds no tensors"),
    "a layer too many": (config(num_hidden_layers=2), r"no place for: model\.layers\.2\."),
    "a layer too few": (config(num_hidden_layers=4), r"missing: model\.layers\.3\."),
    "a classifier": (
        weights(lambda tensors: {**tensors, "score.weight": torch.zeros(2, 64)}),
        r"no place for: score\.weight",
    ),
    "a LoRA adapter": (
        weights(lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 64)}),
        r"no place for: model\.layers\.0\.self_attn\.q_proj\.lora_A",
    ),
    "another architecture": (
        config(model_type="qwen2", architectures=["Qwen2ForCausalLM"]),
        r"missing: model\.layers\.0\.self_attn\.k_proj\.bias",
    ),
    "a wider vocabulary": (config(vocab_size=400), r"embed_tokens\.weight \[320, 64\] instead of \[400, 64\]"),
    "a wider model": (config(hidden_size=128), r"lm_head\.weight \[320, 64\] instead of \[320, 128\]"),
    "another head dimension": (config(head_dim=16), r"k_proj\.weight \[64, 64\] instead of \[32, 64\]"),
    "another MLP": (config(intermediate_size=100), r"\[128, 64\] instead of \[100, 64\]"),
    "more KV heads": (config(num_key_value_heads=4), r"k_proj\.weight \[64, 64\] instead of \[128, 64\]"),
    "a transposed matrix": (
        weights(lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"].T.contiguous()}),
        r"lm_head\.weight \[64, 320\] instead of \[320, 64\]",
    ),
    "integer weights": (_cast(torch.int32), "hold no floating-point numbers"),
}
# Weight files that are damaged.
CASES |= {
    "weights empty": (content(WEIGHTS, ""), "cut short"),
    "weights of 5 bytes": (content(WEIGHTS, b"12345"), "cut short"),
    "weights cut in the header": (cut(WEIGHTS, 0.001), "cut short"),
    "weights cut in the middle": (cut(WEIGHTS, 0.5), "cut short"),
    "weights cut at the end": (cut(WEIGHTS, 0.999), "cut short"),
    "weights of zeros": (content(WEIGHTS, bytes(4096)), "not valid JSON"),
    "weights that are a page of HTML": (content(WEIGHTS, "<html>" * 1000), "cut short"),
    "weights that are a Git LFS pointer": (
        content(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        "cut short",
    ),
    "bytes after the last tensor": (
        lambda folder: content(WEIGHTS, (folder / WEIGHTS).read_bytes() + b"123")(folder),
        "3 bytes follow the last tensor",
    ),
    "header that is a list": (header(lambda entries: [1]), "not a dictionary"),
    "header that is cut": (
        lambda folder: content(WEIGHTS, struct.pack("<Q", 10) + b'{"a": [1, ' + b"0" * 99)(folder),
        "not valid JSON",
    ),
    "header nested deeply": (
        content(WEIGHTS, struct.pack("<Q", 200_000) + b"[" * 200_000),
        "not valid JSON",
    ),
    "negative shape": (header(lambda entries: first(entries).update(shape=[-1, 64])), "describes .* wrongly"),
    "shape of text": (header(lambda entries: first(entries).update(shape="ab")), "describes .* wrongly"),
    "no offsets": (header(lambda entries: first(entries).pop("data_offsets") and entries), "describes .* wrongly"),
    "offsets swapped": (header(lambda entries: first(entries)["data_offsets"].reverse()), "describes .* wrongly"),
    "offsets beyond the file": (
        header(lambda entries: first(entries).update(data_offsets=[0, 10**15], shape=[10**15], dtype="U8")),
        "ends beyond the end",
    ),
    "shape that does not fit the bytes": (header(lambda entries: first(entries).update(shape=[3, 5])), "bytes, too"),
    "unknown type of numbers": (header(lambda entries: first(entries).update(dtype="F7")), r"cannot be loaded: .*F7"),
    "no type of numbers": (header(lambda entries: first(entries).update(dtype=None)), "describes .* wrongly"),
    "tensors that overlap": (header(_overlap), "cannot be loaded: "),
    "weights that are a pipe": (pipe(WEIGHTS), "not a regular file"),
    "weights that are a dangling link": (link(WEIGHTS), "link to a file that does not exist"),
    "another weight file dangles": (link("model-00002.safetensors"), "model-00002.safetensors is a link to a file"),
    "a folder for weights": (both(gone(WEIGHTS), lambda folder: (folder / WEIGHTS).mkdir()), "not a regular file"),
    "no weights": (gone(WEIGHTS), r"no \*\.safetensors there"),
    "weights under another name": (
        lambda folder: shutil.move(folder / WEIGHTS, folder / "weights.safetensors"),
        "neither model.safetensors nor model.safetensors.index.json",
    ),
    "a shard is gone": (sharded(_lose("model-2.safetensors")), "model-2.safetensors is a link|model-2.safetensors is"),
    "a shard holds less": (
        sharded(lambda folder, where: _index({**where, "model.extra": "model-1.safetensors"})),
        r"model-1\.safetensors does not hold model\.extra",
    ),
    "index without a map": (sharded(lambda folder, where: {"metadata": {}}), "has no weight_map"),
    "index without metadata": (sharded(lambda folder, where: {"weight_map": where}), "has no metadata"),
    "index with an empty map": (sharded(lambda folder, where: _index({})), "has no weight_map"),
    "index with a list": (sharded(lambda folder, where: _index([1])), "has no weight_map"),
    "index with numbers": (sharded(lambda folder, where: _index(dict.fromkeys(where, 1))), "has no weight_map"),
    "index that leaves the folder": (
        sharded(lambda folder, where: _index(dict.fromkeys(where, "../model-1.safetensors"))),
        "not a file of this folder",
    ),
}
# A config.json that is damaged, or describes no model.
CASES |= {
    "config empty": (content("config.json", ""), "config.json is not valid JSON"),
    "config cut": (cut("config.json", 0.5), "config.json is not valid JSON"),
    "config in latin-1": (content("config.json", b'{"model_type": "\xe4"}'), "config.json is not valid JSON"),
    "config that is a list": (content("config.json", "[1]"), "config.json does not hold a dictionary"),
    "config that is null": (content("config.json", "null"), "config.json does not hold a dictionary"),
    "config nested deeply": (content("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "config that is a pipe": (pipe("config.json"), "no config.json there"),
    "config that is a dangling link": (link("config.json"), "no config.json there"),
    "no model type": (config(model_type=None), "model_type=None"),
    "unknown model type": (config(model_type="nope"), "nope"),
    "model type that is a list": (config(model_type=["llama"]), "model_type="),
    "no dtype of that name": (config(dtype="float7"), r"dtype=float7: must be one of"),
    "dtype that is a number": (config(dtype=5), r"dtype=5: must be one of"),
    "old key of an unknown dtype": (config(torch_dtype="int8"), r"torch_dtype=int8: must be one of"),
    "unknown activation": (config(hidden_act="nope"), r"hidden_act=nope is unknown"),
    "unknown rope": (config(rope_parameters={"rope_type": "nope"}), r"rope_type=nope|rope_type"),
    "rope that is a list": (config(rope_parameters=[1]), "rope_parameters|rope"),
    "rope with a base of text": (
        config(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
        "no model can be built|cannot be",
    ),
    "bytes for a vocabulary": (config(vocab_size="320"), r"vocab_size=320: must be an integer"),
    "heads that do not divide": (config(num_key_value_heads=3), "k_proj|num_key_value_heads|cannot be"),
    "hidden size that the heads do not divide": (config(hidden_size=65), "cannot be loaded: "),
    "layer types for other layers": (config(layer_types=["full_attention"]), "layer_types|layer types"),
    "unknown layer types": (config(layer_types=["magic"] * 3), "layer_types|magic"),
    "layer types that are a number": (config(layer_types=3), r"layer_types=3: must be a list of names"),
    "a quantisation nobody knows": (config(quantization_config={"quant_method": "nope"}), "quant_method=nope"),
    "a quantisation without a method": (config(quantization_config={}), "quant_method=None"),
    "a quantisation that is a text": (config(quantization_config="4bit"), "quant_method=None"),
    "GPTQ without its package": (
        config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
        "(optimum|gptqmodel).*; install it, or choose another model",
    ),
    "AWQ without its package": (
        config(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}),
        "gptqmodel|autoawq",
    ),
    "bitsandbytes without its package": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "bitsandbytes",
    ),
}
SIZES = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
SIZES += ["head_dim", "vocab_size", "max_position_embeddings"]
for key in SIZES:
    for value in (-1, 0, 1.5, "8", True, [2], 10**30, -(10**9)):
        shown = str(value).replace("[", r"\[")
        CASES[f"{key}={value}"] = (config(**{key: value}), rf"config\.json: {key}={shown}|{key}|instead of|cannot be")
CASES |= {
    "10^9 layers": (config(num_hidden_layers=10**9), r"config\.json: num_hidden_layers=1000000000: must be at most"),
    "10^9 tokens": (config(vocab_size=10**9), r"embed_tokens\.weight \[320, 64\] instead of \[1000000000, 64\]"),
    "a hidden size of 10^9": (config(hidden_size=10**9), r"instead of \[320, 1000000000\]"),
    "an MLP of 10^9": (config(intermediate_size=10**9), r"instead of \[1000000000, 64\]"),
    "10^9 in a nested config": (config(text_config={"num_hidden_layers": 10**9}), r"text_config\.num_hidden_layers"),
    "10^12 experts": (config(num_local_experts=10**12), r"num_local_experts=1000000000000: must be at most"),
    "not a number": (config(rms_norm_eps=float("nan")), r"rms_norm_eps=nan: must be a number"),
    "infinitely wide": (config(hidden_size=float("inf")), r"hidden_size=inf: must be at most"),
}
# Files of the tokenizer and of generation.
CASES |= {
    "generation config cut": (cut("generation_config.json", 0.5), "generation_config.json is not valid JSON"),
    "generation config that is a list": (content("generation_config.json", "[]"), "does not hold a dictionary"),
    "generation config that is a pipe": (pipe("generation_config.json"), "not a regular file"),
    "an end of text": (content("generation_config.json", '{"eos_token_id": "</s>"}'), r"eos_token_id=</s>: must be"),
    "an end of lists": (content("generation_config.json", '{"eos_token_id": [[1]]}'), r"eos_token_id=\[\[1\]\]: must"),
    "an end beyond the vocabulary": (
        content("generation_config.json", '{"eos_token_id": 99999}'),
        "eos_token_id=99999: must be from 0 to 319",
    ),
    "a negative end": (
        content("generation_config.json", '{"eos_token_id": -7}'),
        "eos_token_id=-7: must be from 0 to 319",
    ),
    "tokenizer config cut": (cut("tokenizer_config.json", 0.5), "tokenizer_config.json is not valid JSON"),
    "tokenizer config that is a list": (content("tokenizer_config.json", "[]"), "does not hold a dictionary"),
    "tokenizer cut": (cut("tokenizer.json", 0.5), "cannot be loaded: "),
    "tokenizer empty": (content("tokenizer.json", "{}"), "cannot be loaded: "),
    "tokenizer of an unknown kind": (content("tokenizer.json", '{"model": {"type": "X"}}'), "cannot be loaded: "),
    "tokenizer that is a pipe": (pipe("tokenizer.json"), "not a regular file"),
    "tokenizer that is a dangling link": (link("tokenizer.json"), "link to a file that does not exist"),
    "no tokenizer": (both(gone("tokenizer.json"), gone("tokenizer_config.json")), "cannot be loaded: .*okenizer"),
    "chat template that is a pipe": (pipe("chat_template.jinja"), "not a regular file"),
    "special tokens cut": (content("special_tokens_map.json", '{"bos_token"'), "special_tokens_map.json is not valid"),
    "a vocabulary smaller than the tokenizer's": (
        both(
            config(vocab_size=200),
            weights(lambda tensors: {k: v[:200].clone() if len(v) == 320 else v for k, v in tensors.items()}),
        ),
        r"vocab_size=200, and the tokenizer has \d+ token\(s\) beyond it",
    ),
}
