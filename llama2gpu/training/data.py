"""Documents as one stream of tokens, and batches drawn from it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llama2gpu.errors import RequestError
from llama2gpu.tokenizer import Tokenizer

Tokens = np.ndarray[tuple[int], np.dtype[np.integer]]
Places = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and tokens held out, each document BOS … EOS; `context` a window.

    begins: where the documents to train on begin; one document where not given.
    """

    train: Tokens
    held_out: Tokens
    context: int
    begins: Places = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens alone."""
        digest = hashlib.sha256(self.train.tobytes())
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()

    def batch(self, seed: int, index: int, size: int) -> torch.Tensor:
        """`size` random windows, int64 `[size, context + 1]`; the same for the same arguments.

        A window begins where its document does, so that whatever the text refers back to is in it;
        in a document that is longer than a window, anywhere.
        """
        random = np.random.default_rng((seed, index))
        places = random.integers(len(self.train) - self.context, size=size)
        owner = np.searchsorted(self.begins, places, side="right") - 1
        lengths = np.diff(self.begins, append=len(self.train))
        starts = np.where(lengths[owner] > self.context, places, self.begins[owner])
        windows = starts[:, None] + np.arange(self.context + 1)
        return torch.from_numpy(self.train[windows].astype(np.int64))

    def held_out_batches(self, size: int, most: int) -> Iterator[torch.Tensor]:
        """At most `most` held-out windows side by side, in batches `[size, context + 1]`."""
        count = min((len(self.held_out) - 1) // self.context, most)
        starts = np.arange(count)[:, None] * self.context
        windows = self.held_out[starts + np.arange(self.context + 1)].astype(np.int64)
        for start in range(0, count, size):
            yield torch.from_numpy(windows[start : start + size])


def encode_corpus(
    documents: Sequence[str], tokenizer: Tokenizer, context: int, held_out: float
) -> Corpus:
    """The documents as tokens; the last of them, `held_out` of all tokens, are held out.

    At least one window is held out, from the end of the last document where that is too long.
    Raises `RequestError` where the text is too small for two windows.
    """
    kind = np.uint16 if tokenizer.vocab <= 1 << 16 else np.int32
    parts = [np.array(_ids(document, tokenizer), dtype=kind) for document in documents]
    stream = np.concatenate(parts)
    if len(stream) < 2 * (context + 1):
        raise RequestError(
            f"the text has {len(stream)} tokens, but a context of {context} needs at least "
            f"{2 * (context + 1)}: give more text, or a smaller --context"
        )
    lengths = [len(part) for part in parts]
    cut = _cut(lengths, context + 1, held_out)
    begins = np.cumsum([0, *lengths[:-1]])
    return Corpus(stream[:cut], stream[cut:], context, begins[begins < cut])


def _ids(document: str, tokenizer: Tokenizer) -> list[int]:
    return [*tokenizer.encode(document), *tokenizer.eos_ids[:1]]


def _cut(lengths: Sequence[int], window: int, held_out: float) -> int:
    """Where the held-out tokens begin: at a document, unless that leaves less than a window."""
    total = sum(lengths)
    wanted = max(window, round(total * held_out))
    start = total
    for length in reversed(lengths):
        if total - start >= wanted:
            break
        start -= length
    largest = max(2 * wanted, window)
    return start if start >= window and total - start <= largest else total - wanted
