"""Finding a tokenizer, and telling its format by its content."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer.base import Tokenizer
from llama2gpu.tokenizer.embedded import companions_of, embedded_file
from llama2gpu.tokenizer.files import REMEDY, exists, read_file
from llama2gpu.tokenizer.huggingface import read_huggingface
from llama2gpu.tokenizer.llama2c import read_llama2c
from llama2gpu.tokenizer.sentencepiece import read_sentencepiece
from llama2gpu.tokenizer.tiktoken_format import read_tiktoken
from llama2gpu.vocabulary import Embedded, MergedVocabulary, ScoredVocabulary

Reader = Callable[[Path, bytes, int | None], Tokenizer]

#: Names of a tokenizer in a folder, best first.
NAMES = ("tokenizer.model", "tokenizer.json", "tokenizer.bin")

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|\Z)")


class Rows(Protocol):
    """A configuration, as far as a tokenizer is concerned."""

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""


class Carrier(Protocol):
    """A checkpoint, as far as a tokenizer is concerned; its attributes mean what they say there."""

    path: Path
    tokenizer_files: tuple[Path, ...]

    @property
    def config(self) -> Rows:
        """What the tokenizer must fit."""

    def embedded_tokenizer(self) -> Embedded | None:
        """The tokenizer within it."""


def tokenizer_of(checkpoint: Carrier, given: str | Path | Tokenizer | None = None) -> Tokenizer:
    """The tokenizer to run a checkpoint with: the `given` one, the one within it, or one beside it.

    Raises `TokenizerError` where there is none, it is damaged, or it does not fit.
    """
    vocab = checkpoint.config.vocab
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return load_tokenizer(given, vocab=vocab)
    embedded = checkpoint.embedded_tokenizer()
    if embedded is None:
        return find_tokenizer(checkpoint.tokenizer_files, vocab=vocab)
    tokenizer = _build(embedded, checkpoint.path, vocab)
    tokenizer.path = checkpoint.path
    return tokenizer


def _build(embedded: Embedded, path: Path, vocab: int) -> Tokenizer:
    _, data = embedded_file(embedded, path)
    if isinstance(embedded, MergedVocabulary):
        return read_huggingface(path, data, vocab, companions_of(embedded))
    tokenizer = _reader(data)(path, data, vocab)
    if isinstance(embedded, ScoredVocabulary):
        tokenizer.bos_id, tokenizer.eos_ids = embedded.bos_id, embedded.eos_ids
        tokenizer.adds_bos = embedded.adds_bos
    return tokenizer


def load_tokenizer(path: str | Path, *, vocab: int | None = None) -> Tokenizer:
    """Reads the tokenizer in a file, or in a folder under one of `NAMES`.

    vocab: embedding rows of the checkpoint that it must fit.
    Raises `TokenizerError` where there is none, it is damaged, or it does not fit.
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path, vocab)
    found = [path / name for name in NAMES if exists(path / name)]
    if not found:
        raise TokenizerError(f"no tokenizer in {path} ({', '.join(NAMES)}); {REMEDY}")
    return _fullest(found, vocab)


def find_tokenizer(candidates: Sequence[Path], *, vocab: int) -> Tokenizer:
    """Reads the first of `candidates` that exists, as `load_tokenizer` does.

    Raises `TokenizerError` where none exists.
    """
    found = [path for path in candidates if exists(path)]
    if not found:
        looked = ", ".join(map(str, candidates))
        where = f" (looked for {looked})" if looked else ""
        raise TokenizerError(f"no tokenizer beside the checkpoint{where}; {REMEDY}")
    if found[0].is_dir():
        return load_tokenizer(found[0], vocab=vocab)
    return _fullest([path for path in found if path.parent == found[0].parent], vocab)


def _fullest(paths: Sequence[Path], vocab: int | None) -> Tokenizer:
    """The first tokenizer, or one beside it that has a token for more of the rows.

    Tokens that were added to a model are often in tokenizer.json alone.
    """
    best = _read(paths[0], vocab)
    for path in paths[1:]:
        if vocab is None or best.vocab == vocab:
            break
        other = _read(path, vocab)
        best = other if other.vocab > best.vocab else best
    return best


def _read(path: Path, vocab: int | None) -> Tokenizer:
    data = read_file(path)
    tokenizer = _reader(data)(path, data, vocab)
    tokenizer.path = path
    return tokenizer


def _reader(data: bytes) -> Reader:
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return read_huggingface
    if _TIKTOKEN_LINE.match(data):
        return read_tiktoken
    # Protobuf: field 1, its length, and in it field 1 again; tokenizer.bin has a uint32 here.
    if data[:1] == b"\n" and data[2:3] == b"\n":
        return read_sentencepiece
    return read_llama2c
