"""Training of a SentencePiece tokenizer of Llama's kind."""

import io
import re
from collections.abc import Iterable, Iterator

from llama2gpu.errors import RequestError
from llama2gpu.tokenizer.files import quiet

#: Unknown, BOS, EOS and the 256 bytes, which every vocabulary has.
FIXED = 259
_LONGEST = 4096


def train_tokenizer(documents: Iterable[str], vocab: int) -> tuple[bytes, int]:
    """A `tokenizer.model` of BPE with byte fallback, and its size: `vocab`, or what the text has.

    Identity normalization, a dummy prefix, digits apart, ids 0 unknown, 1 BOS, 2 EOS, as Llama's.
    The same documents give the same bytes. Raises `RequestError` where no vocabulary can be made.
    """
    lines = list(_lines(documents))
    try:
        return _train(lines, vocab), vocab
    except RuntimeError as error:
        if needed := re.search(r"required_chars\D+\d+ vs (\d+)", str(error)):
            raise RequestError(
                f"the text has too many characters for a tokenizer of {vocab} tokens: "
                f"give --vocab {int(needed[1]) + 1} or more"
            ) from None
        if "sentences_.empty()" in str(error):
            raise RequestError(
                "every line has the character ▅ (U+2585), which SentencePiece reserves: "
                "replace it in the text, or give --tokenizer PATH"
            ) from None
        found = re.search(r"value <= (\d+)", str(error))
        most = int(found[1]) if found else 0
    if not FIXED < most < vocab:
        raise RequestError(
            f"the text is too small for a tokenizer of {vocab} tokens: give more text, a smaller "
            "--vocab, or --tokenizer PATH"
        )
    return _train(lines, most), most


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for line in document.splitlines():
            for start in range(0, len(line), _LONGEST):
                yield line[start : start + _LONGEST]


def _train(lines: list[str], vocab: int) -> bytes:
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    with quiet():
        SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab,
            byte_fallback=True,
            character_coverage=0.99995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            max_sentence_length=8 * _LONGEST,
            minloglevel=2,
        )
    return written.getvalue()
