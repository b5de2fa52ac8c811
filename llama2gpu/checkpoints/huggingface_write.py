"""Writing Hugging Face folders, dense or in GPTQ's layout, one tensor at a time."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from llama2gpu.checkpoints.base import Checkpoint, tensor_shapes
from llama2gpu.checkpoints.fields import read_json
from llama2gpu.checkpoints.files import file_size, present
from llama2gpu.checkpoints.gptq_write import Scheme, gptq_tensors, quantization_fields, scheme_of
from llama2gpu.checkpoints.huggingface import NAMES, TOKENIZERS, half_split_rows
from llama2gpu.checkpoints.huggingface_fields import (
    config_fields,
    json_bytes,
    token_ids,
    tokenizer_fields,
)
from llama2gpu.checkpoints.new_folder import check_place, new_folder, writing
from llama2gpu.config import Config
from llama2gpu.errors import CheckpointError, RequestError
from llama2gpu.quant import Dense, Weight
from llama2gpu.tokenizer import Tokenizer, embedded_file, tokenizer_of
from llama2gpu.tokenizer.export import vocabulary_of

#: Bytes of tensors that are held before they are written as one shard.
SHARD_BYTES = 1 << 30

#: Files that say what a tokenizer's own file does not; they go with it.
_TOKENIZER_PARTS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_GENERATION = "generation_config.json"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_KNOWN = {"config.json", _GENERATION, _INDEX, *TOKENIZERS, *_TOKENIZER_PARTS}
#: Tokenizers whose file goes along, by format; others are written anew.
_COPIED = {"SentencePiece": "tokenizer.model", "Hugging Face": "tokenizer.json"}

#: What marks a `config.json` as written here.
_MARK = {"written_by": "llama2gpu"}


class Writer:
    """Takes the tensors of a model in any order; made by `write_huggingface`."""

    def __init__(self, out: Path, work: Path, config: Config, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self._out, self._work = out, work
        self._shapes = dict(tensor_shapes(config))
        self._schemes: dict[str, Scheme | None] = {}
        self._held: dict[str, torch.Tensor] = {}
        self._held_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._nbytes = 0

    def add(self, name: str, weight: Weight | torch.Tensor) -> None:
        """One tensor by canonical name, in the canonical order of rows, on any device.

        Dense ones are stored in the folder's dtype, quantized ones as they are. What is given may
        be held until its shard is full: it must not change. Raises `RequestError` for a tensor
        that the model has not, or that the layout can't hold, and where the disk is full.
        """
        given = Dense(weight) if isinstance(weight, torch.Tensor) else weight
        shape = tuple(given.data.shape) if isinstance(given, Dense) else given.shape
        if self._shapes.get(name) != shape:
            raise RequestError(f"the model has no tensor {name} of {list(shape)}, or it came twice")
        del self._shapes[name]
        stored = half_split_rows(name, given.to(torch.device("cpu")), self.config.head_dim)
        module = NAMES(name).removesuffix(".weight")
        if len(shape) == 2:
            self._schemes[module] = scheme_of(stored)
        if isinstance(stored, Dense):
            self._hold(NAMES(name), stored.data.detach().to(self.dtype).contiguous())
            return
        for part, tensor in gptq_tensors(name, stored).items():
            self._hold(f"{module}.{part}", tensor)

    def finish(self, ids: dict[str, object]) -> None:
        """The last shard, the index of several, and `config.json`."""
        if self._shapes:
            raise RequestError(f"the folder would lack {next(iter(self._shapes))}: write it too")
        self._flush()
        places = dict(self._named_shards())
        if len(self._shards) > 1:
            total = {"total_size": self._nbytes}
            self.write(_INDEX, json_bytes({"metadata": total, "weight_map": places}))
        fields = config_fields(self.config, self.dtype) | ids | _MARK
        if quantization := quantization_fields(self._schemes):
            fields["quantization_config"] = quantization
        self.write("config.json", json_bytes(fields))

    def write(self, name: str, data: bytes) -> None:
        """One small file."""
        with writing(self._out):
            (self._work / name).write_bytes(data)

    def copy(self, name: str, path: Path) -> None:
        """One file as it is."""
        file_size(path)
        with writing(self._out):
            shutil.copyfile(path, self._work / name)

    def _hold(self, name: str, tensor: torch.Tensor) -> None:
        if self._held and self._held_bytes + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self._held[name] = tensor
        self._held_bytes += tensor.nbytes
        self._nbytes += tensor.nbytes

    def _flush(self) -> None:
        path = self._work / f"{len(self._shards)}.safetensors"
        with writing(self._out):
            save_file(self._held, path, metadata={"format": "pt"})
        self._shards.append((path, list(self._held)))
        self._held, self._held_bytes = {}, 0

    def _named_shards(self) -> Iterator[tuple[str, str]]:
        """Renames the shards, whose number is known at last; gives the tensors and their files."""
        count = len(self._shards)
        for n, (path, names) in enumerate(self._shards, 1):
            file = f"model-{n:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            with writing(self._out):
                path.rename(self._work / file)
            yield from ((name, file) for name in names)


@contextmanager
def write_huggingface(
    out: Path,
    config: Config,
    dtype: torch.dtype,
    *,
    source: Checkpoint | None = None,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
) -> Iterator[Writer]:
    """A new folder, which is at `out` once the block ends without an error, and not before.

    dtype: of dense tensors. source: the checkpoint that is converted; its token ids and the
    tokenizer beside it go along. tokenizer: one from elsewhere, which goes along instead.
    overwrite: replace a folder that this wrote and that holds nothing else.
    Raises `RequestError` where something else is there, where tensors are missing at the end, and
    where the disk is full; nothing is left behind then.
    """
    check_place(out, None if source is None else source.path)
    _check_free(out, overwrite)
    with new_folder(out) as work:
        writer = Writer(out, work, config, dtype)
        yield writer
        ids, files = _ids(source, tokenizer), _companions(source, tokenizer)
        made = {_GENERATION: json_bytes(ids), **_made(config, source, tokenizer)}
        for name, data in made.items():
            if name not in files:
                writer.write(name, data)
        for name, path in files.items():
            writer.copy(name, path)
        writer.finish(ids)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raises `RequestError` unless `out` is free, empty, or a folder that may be replaced."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise RequestError(f"{out} exists: give another folder, or --overwrite to replace it")
    if not _is_ours(out):
        raise RequestError(
            f"{out} holds files that this command did not write, so --overwrite does not touch "
            "it: give another folder"
        )


def _is_ours(folder: Path) -> bool:
    if any(p.name not in _KNOWN and not _WEIGHTS.fullmatch(p.name) for p in folder.iterdir()):
        return False
    try:
        return read_json(folder / "config.json").values.items() >= _MARK.items()
    except CheckpointError:
        return False


def _companions(source: Checkpoint | None, tokenizer: Tokenizer | None) -> dict[str, Path]:
    """Files that go along, by the names that they get."""
    beside: dict[str, Path] = {}
    if source is not None and source.path.is_dir():
        found = present(source.path, *TOKENIZERS, *_TOKENIZER_PARTS, _GENERATION)
        beside = {path.name: path for path in found}
    if tokenizer is None:
        within = source is not None and source.embedded_tokenizer() is not None
        others = () if source is None or beside or within else source.tokenizer_files
        there = [path for path in others if path.exists()]
        return beside or {f"tokenizer{path.suffix}": path for path in there[:1]}
    if tokenizer.path in beside.values():
        return beside
    kept = {name: path for name, path in beside.items() if name == _GENERATION}
    if not _is_copied(source, tokenizer):
        return kept
    return {_COPIED[tokenizer.format]: tokenizer.path, **kept}


def _is_within(source: Checkpoint | None, tokenizer: Tokenizer) -> bool:
    return source is not None and tokenizer.path == source.path


def _is_copied(source: Checkpoint | None, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has a file of its own, which other engines read."""
    return tokenizer.format in _COPIED and not _is_within(source, tokenizer)


def _made(
    config: Config, source: Checkpoint | None, tokenizer: Tokenizer | None
) -> dict[str, bytes]:
    """What describes a tokenizer to other engines; all of one that has no file for them."""
    embedded = None if source is None else source.embedded_tokenizer()
    if tokenizer is None and source is not None and embedded is not None:
        tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return {}
    template = None if source is None else source.chat_template
    fields = tokenizer_fields(config, tokenizer)
    fields |= {"chat_template": template} if template else {}
    made = {"tokenizer_config.json": json_bytes(fields)}
    if not _is_copied(source, tokenizer):
        own = embedded if _is_within(source, tokenizer) else None
        name, data = embedded_file(own or vocabulary_of(tokenizer), tokenizer.path)
        made[name] = data
    return made


def _ids(source: Checkpoint | None, tokenizer: Tokenizer | None) -> dict[str, object]:
    """The tokens that begin and end a text: the checkpoint's where it tells, or the tokenizer's."""
    bos, eos = (None, ()) if source is None else (source.bos_id, source.stop_ids)
    if tokenizer is not None:
        bos, eos = tokenizer.bos_id if bos is None else bos, eos or tokenizer.eos_ids
    return token_ids(bos, eos)
