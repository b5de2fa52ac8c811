"""llama.cpp on a shape of random weights, as its own `llama-bench` measures it."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from llama2gpu.backends import resolve_device
from llama2gpu.checkpoints import tensor_shapes
from llama2gpu.config import Config
from llama2gpu.errors import BackendError
from llama2gpu.measure.shapes import SHAPES
from llama2gpu.measure.subject import Subject
from llama2gpu.quant.spec import parse_spec

#: Weight types by the names that people give the files; blocks start with a float16 scale.
FILE_TYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}

#: More layers than a model has: all of it lies on the GPU.
ALL_LAYERS = 999

_NAMES = {
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "wq": "attn_q", "wk": "attn_k",
    "wv": "attn_v", "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
    "embed": "token_embd", "norm": "output_norm", "output": "output",
}  # fmt: skip


def write_gguf(path: Path, config: Config, kind: str, seed: int = 0) -> None:
    """A GGUF of random weights and no vocabulary; matrices of `kind`, a key of `FILE_TYPES`.

    Raises `BackendError` without the package gguf. Source: the GGUF specification of ggml.
    """
    try:
        import gguf
    except ImportError as error:
        raise BackendError("a GGUF is written by the package gguf: pip install gguf") from error
    c, random = config, np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.dim)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(c.vocab)
    writer.add_tokenizer_model("no_vocab")
    for name, shape in tensor_shapes(c):
        part = name.rpartition(".")[2]
        prefix = f"blk.{name.split('.')[1]}." if "." in name else ""
        wanted = gguf.GGMLQuantizationType[FILE_TYPES[kind] if len(shape) == 2 else "F32"]
        data = _random(random, shape, wanted.name, gguf.GGML_QUANT_SIZES[wanted])
        writer.add_tensor(f"{prefix}{_NAMES[part]}.weight", data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random(
    random: np.random.Generator, shape: tuple[int, ...], kind: str, size: tuple[int, int]
) -> np.ndarray[Any, Any]:
    """Random weights near ±0.05 as stored: floats, or bytes behind a scale for each block."""
    if kind == "F32":
        return random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    if kind in ("F16", "BF16"):
        wide = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        if kind == "F16":
            return wide.astype(np.float16)
        return (wide.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    columns, nbytes = size
    blocks = random.integers(0, 256, (shape[0], shape[1] // columns, nbytes), dtype=np.uint8)
    scale = np.array([0.05 / (8 if nbytes == 18 else 128)], dtype=np.float16)
    blocks[:, :, :2] = scale.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def file_type(dtype: str, quant: str) -> str:
    """The key of `FILE_TYPES` that comes nearest to a type and a quantization."""
    if quant != "none":
        return parse_spec(quant).kind
    return "bf16" if dtype == "auto" else dtype


@contextmanager
def llama_bench(
    program: Path, subject: Subject, prompt: int, tokens: int
) -> Iterator[tuple[str, "LlamaBench"]]:
    """llama.cpp on a file of the subject's shape, which lasts as long as the block, on its device.

    With the type of the weights as llama.cpp names it. Raises `BackendError` where the subject is
    on a GPU that the program was not built for.
    """
    on_gpu = resolve_device(subject.device).type != "cpu"
    if on_gpu and not sees_gpu(program):
        raise BackendError(f"{program} sees no GPU: build llama.cpp for it, such as -DGGML_CUDA=ON")
    kind = file_type(subject.dtype, subject.quant)
    with TemporaryDirectory(prefix="llama2gpu-") as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, SHAPES[subject.model], kind)
        threads = subject.threads or torch.get_num_threads()  # as many as ours
        bench = LlamaBench(program, path, prompt, tokens, threads, ALL_LAYERS if on_gpu else 0)
        yield FILE_TYPES[kind], bench


def sees_gpu(program: Path) -> bool:
    """Whether a `llama-bench` was built for a device that is here."""
    return bool(re.search(r"(?m)^\s+(?!BLAS)\w+: ", _run([str(program), "--list-devices"])))


def program_version(program: Path) -> str:
    """What a `llama-bench` says of itself; "" for an old one, which says nothing."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: (.+)", done.stdout + done.stderr)
    return found[1].strip() if found else ""


@dataclass(frozen=True)
class LlamaBench:
    """A call measures prefill and decode rates in tokens/s once, by `llama-bench`.

    gpu_layers: so many of them are computed on a GPU. Raises `BackendError` with the program's last
    line where it fails.
    """

    program: Path
    model: Path
    prompt: int
    tokens: int
    threads: int
    gpu_layers: int = 0

    def __call__(self) -> tuple[float, float]:
        """The two rates; decode is behind a prompt, as everywhere else here."""
        prefill = self._rate({"-p": self.prompt, "-n": 0})
        return prefill, self._rate({"-p": 0, "-n": self.tokens, "-d": self.prompt})

    def _rate(self, test: dict[str, int]) -> float:
        numbers = test | {"-t": self.threads, "-r": 1, "-ngl": self.gpu_layers}
        flags = [part for flag, number in numbers.items() for part in (flag, str(number))]
        command = [str(self.program), "-m", str(self.model), *flags, "-o", "json"]
        return float(json.loads(_run(command))[0]["avg_ts"])


def _run(command: Sequence[str]) -> str:
    """What a program writes to stdout."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise BackendError(f"{command[0]} failed: {lines[-1]}") from error
    return done.stdout
