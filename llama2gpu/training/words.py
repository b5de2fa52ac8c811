"""The tokenizer of a training: given, taken from a checkpoint, or trained on the text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llama2gpu.checkpoints import Checkpoint
from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer import Tokenizer, load_tokenizer
from llama2gpu.tokenizer.load import NAMES
from llama2gpu.tokenizer.sentencepiece import read_sentencepiece
from llama2gpu.training.spm import train_tokenizer

#: Names that a Hugging Face folder may hold, by the format that was read.
_FILES = {
    "SentencePiece": "tokenizer.model",
    "tiktoken": "tokenizer.model",
    "Hugging Face": "tokenizer.json",
}


class Words(NamedTuple):
    """A tokenizer, the name of its file, and the bytes of it."""

    tokenizer: Tokenizer
    name: str
    data: bytes


def given_words(candidates: Sequence[Path], base: Checkpoint | None) -> Words:
    """The first tokenizer at these paths, files or folders, which must fit `base`."""
    found = [path for path in candidates if path.exists()]
    if not found:
        raise TokenizerError(f"no tokenizer at {', '.join(map(str, candidates))}: give its path")
    path = found[0]
    if path.is_dir():
        return given_words([path / name for name in NAMES], base)
    tokenizer = load_tokenizer(path, vocab=None if base is None else base.config.vocab)
    name = _FILES.get(tokenizer.format)
    if name is None:
        raise TokenizerError(
            f"{path} is a {tokenizer.format} tokenizer, which no Hugging Face folder holds: "
            "give a tokenizer.model or tokenizer.json"
        )
    return Words(tokenizer, name, path.read_bytes())


def trained_words(documents: Sequence[str], vocab: int, tell: Callable[[str], None]) -> Words:
    """A tokenizer of these documents; tells where they have less than `vocab` tokens."""
    data, size = train_tokenizer(documents, vocab)
    if size < vocab:
        tell(f"the text is small: its vocabulary has {size} tokens, not {vocab}")
    name = "tokenizer.model"
    return Words(read_sentencepiece(Path(name), data, None), name, data)
