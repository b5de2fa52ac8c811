"""The tokenizer of a training: given, taken from a checkpoint, or trained on the text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llama2gpu.checkpoints import Checkpoint
from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer import Tokenizer, embedded_file, load_tokenizer, tokenizer_of
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


def given_words(given: Path | None, base: Checkpoint | None) -> Words:
    """The tokenizer in a file or folder, or else the one that `base` runs with; it fits `base`."""
    vocab = None if base is None else base.config.vocab
    if given is not None:
        tokenizer = load_tokenizer(given, vocab=vocab)
    elif base is not None:
        tokenizer = tokenizer_of(base)
        if (embedded := base.embedded_tokenizer()) is not None:
            return Words(tokenizer, *embedded_file(embedded, base.path))
    else:
        raise TokenizerError("no tokenizer and no checkpoint: give --tokenizer PATH")
    name = _FILES.get(tokenizer.format)
    if name is None:
        raise TokenizerError(
            f"{tokenizer.path} is a {tokenizer.format} tokenizer, which no Hugging Face folder "
            "holds: give a tokenizer.model or tokenizer.json"
        )
    return Words(tokenizer, name, tokenizer.path.read_bytes())


def trained_words(documents: Sequence[str], vocab: int, tell: Callable[[str], None]) -> Words:
    """A tokenizer of these documents; tells where they have less than `vocab` tokens."""
    data, size = train_tokenizer(documents, vocab)
    if size < vocab:
        tell(f"the text is small: its vocabulary has {size} tokens, not {vocab}")
    name = "tokenizer.model"
    return Words(read_sentencepiece(Path(name), data, None), name, data)
