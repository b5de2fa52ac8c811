"""Checkpoints that are but a name, and tokenizers with the control tokens of chat models."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llama2gpu.chat import Chat
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.checkpoints.base import TensorInfo
from llama2gpu.tokenizer import Tokenizer, load_tokenizer

LLAMA_3_CONTROLS = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>")


class Named(Checkpoint):
    """A checkpoint of which only the name, the template and the stop tokens matter."""

    def __init__(
        self, path: Path, template: str | None = None, stop_ids: tuple[int, ...] = ()
    ) -> None:
        self.path, self.chat_template, self.stop_ids = path, template, stop_ids

    def tensors(self) -> Iterator[TensorInfo]:
        return iter(())

    def read(self, name: str) -> torch.Tensor:
        raise NotImplementedError


def chat_of(tokenizer: Tokenizer, template: str, name: str | None = None) -> Chat:
    return Chat.of(Named(Path("model"), template), tokenizer, name)


def variant(source: Path, folder: Path, extra: Sequence[str] = (), **changes: Any) -> Path:
    """A tokenizer.json with more control tokens, and with other parts in place of its own."""
    spec = json.loads(source.read_text()) | changes
    first = max(spec["model"]["vocab"].values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for id, name in enumerate(extra, first):
        spec["added_tokens"].append({"id": id, "content": name, "special": True, **flags})
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return path


def theirs(path: Path, bos: str, eos: str) -> Any:
    """The same tokenizer in transformers."""
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_file=str(path), bos_token=bos, eos_token=eos)


def pair(path: Path, bos: str, eos: str) -> tuple[Tokenizer, Any]:
    """Ours and theirs, both told which tokens begin and end a text."""
    (path.parent / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": bos, "eos_token": eos})
    )
    return load_tokenizer(path), theirs(path, bos, eos)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}
