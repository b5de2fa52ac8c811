"""GGUF files, versions 2 and 3, of the `llama` architecture; whole, or in parts."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llama2gpu.checkpoints.files import present
from llama2gpu.checkpoints.gguf_blocks import kinds_of, stored
from llama2gpu.checkpoints.gguf_config import fields_of, read_config
from llama2gpu.checkpoints.gguf_header import Blocks, Header, read_header
from llama2gpu.checkpoints.gguf_names import NAMES, ROPE_FREQS, General, Words
from llama2gpu.checkpoints.gguf_words import bos_id, read_vocabulary, stop_ids
from llama2gpu.checkpoints.stored import Stored, StoredCheckpoint, select
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError
from llama2gpu.vocabulary import Embedded

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MOST_PARTS = 1 << 10


class GgufCheckpoint(StoredCheckpoint):
    """A checkpoint with its tokenizer inside."""

    def __init__(self, header: Header, config: Config, tensors: Mapping[str, Stored]) -> None:
        super().__init__(f"GGUF v{header.version}", header.path, config, tensors)
        self._header, self.parts = header, header.parts
        fields = fields_of(header)
        self.quantization = kinds_of(tensors.values())
        self.bos_id = bos_id(header, config.vocab)
        self.stop_ids = stop_ids(header, config.vocab)
        if Words.CHAT_TEMPLATE in fields:
            self.chat_template = fields.text(Words.CHAT_TEMPLATE, "")
        names = ("tokenizer.model", "tokenizer.json")
        self.tokenizer_files = present(header.path.parent, *names)

    def embedded_tokenizer(self) -> Embedded | None:
        """The file's tokenizer; None where it has none."""
        return read_vocabulary(self._header)


def open_gguf(path: Path) -> GgufCheckpoint:
    """Opens a file, or all parts of a model by any of them.

    Q4_0 and Q8_0 stay integers; other quantized types are dequantized to float32 as they are read.
    Raises `CheckpointError` for what is damaged or missing, `UnsupportedModelError` for other
    architectures, versions and types.
    """
    header = _joined(path)
    config = read_config(header)
    found = {
        name: stored(header.path, blocks)
        for name, blocks in header.tensors.items()
        if name != ROPE_FREQS
    }
    return GgufCheckpoint(header, config, select(path, config, found, NAMES))


def _joined(path: Path) -> Header:
    """The header of a file; that of the first part, with the tensors of all."""
    header = read_header(path)
    count = fields_of(header).integer(General.SPLITS, 1)
    if count < 2:
        return header
    named = _PART.fullmatch(path.name)
    if not named or int(named[3]) != count or count > _MOST_PARTS:
        raise CheckpointError(
            f"{path} is one of {count} parts, but its name does not end in "
            f"-00001-of-{count:05d}.gguf: give the parts their names back, or join them with "
            "llama-gguf-split --merge"
        )
    names = [f"{named[1]}-{n:05d}-of-{named[3]}.gguf" for n in range(1, count + 1)]
    parts = [header if name == path.name else read_header(path.parent / name) for name in names]
    tensors: dict[str, Blocks] = {}
    for n, part in enumerate(parts):
        fields = fields_of(part)
        wanted = {General.SPLITS: count, General.SPLIT: n}
        if any(fields.integer(key, -1) != value for key, value in wanted.items()):
            raise CheckpointError(
                f"{part.path} is not part {n + 1} of {count}: download the parts again"
            )
        if twice := tensors.keys() & part.tensors.keys():
            raise CheckpointError(
                f"{part.path} holds {min(twice)[:80]} once more: download the parts again"
            )
        tensors |= part.tensors
    files = tuple(part.path for part in parts)
    return replace(parts[0], path=path, tensors=tensors, parts=files)
