"""Hugging Face's tokenizer.json, through the tokenizers library."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from llama2gpu.errors import Llama2GPUError, RequestError
from llama2gpu.files import one_line
from llama2gpu.tokenizer.base import NO_TOKEN, Token, Tokenizer
from llama2gpu.tokenizer.files import check_vocab, damaged, quiet
from llama2gpu.tokenizer.huggingface_decoder import TokenBytes
from llama2gpu.tokenizer.huggingface_files import Companions

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

#: A text that reaches every stage of a tokenizer, so that a damaged one fails when it is read.
_PROBE = "A bé, 12\n"


class HuggingFace(Tokenizer):
    """`tokenizer.json`; which tokens start and end a text stands in the files beside it."""

    format = "Hugging Face"

    def __init__(self, library: "Library", companions: Companions) -> None:
        library.no_padding()
        library.no_truncation()
        self.library, self._lock = library, Lock()
        self.vocab = max(library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_ids = tuple(companions.ids("eos", library))
        first = [id for id in library.encode("").ids[:1] if id not in self.eos_ids]
        self.bos_id = next(iter(companions.ids("bos", library, first)), None)
        self.adds_bos = companions.flag("add_bos_token", default=first == [self.bos_id])
        self._names = _mark_control(library, [self.bos_id, *self.eos_ids])
        self._by_id = {id: name for name, id in self._names.items()}
        self._bytes = TokenBytes.of(library.decoder)
        self.leading = self._bytes.leading

    @property
    def byte_level(self) -> bool:
        """Whether its pieces are spelled in letters for bytes."""
        return self._bytes.byte_level

    def _ids(self, text: str, *, special: bool) -> list[int]:
        with self._lock, _failures(lambda what: RequestError(f"can't tokenize this text: {what}")):
            self.library.encode_special_tokens = not special
            return list(self.library.encode(text, add_special_tokens=False).ids)

    def _encode(self, text: str) -> list[int]:
        ids = self._ids(text, special=False)
        unknown = {"<unk>", getattr(self.library.model, "unk_token", None)}
        spelled = {self._by_id[id] for id in self._by_id.keys() & set(ids)} - unknown
        if spelled:
            raise RequestError(f"this tokenizer can't take {min(spelled)} as text: leave it out")
        return ids

    def _encode_special(self, text: str) -> list[int]:
        return self._ids(text, special=True)

    def _encode_after(self, text: str) -> list[int]:
        """As within a text: without the space that some put before a text's start alone."""
        alone, name = self._encode(text), next(iter(self._names), None)
        if name is None or self._ids(f"{name}a", special=True)[1:] == self._encode("a"):
            return alone
        line = self._encode("\n")
        ids = self._encode(f"\n{text}")
        return ids[len(line) :] if ids[: len(line)] == line else alone

    def _token(self, id: int) -> Token:
        if id in self._by_id:
            return Token(self._by_id[id].encode(), control=True)
        name = self.library.id_to_token(id)
        return NO_TOKEN if name is None else Token(self._bytes(name))

    def _controls(self) -> Mapping[str, int]:
        return self._names


def _mark_control(library: "Library", ids: list[int | None]) -> dict[str, int]:
    """Control tokens by name: those marked `special`, and `ids`, which some files don't mark."""
    from tokenizers import AddedToken

    names = [library.id_to_token(id) for id in ids if id is not None]
    library.add_special_tokens([AddedToken(name, normalized=False) for name in names if name])
    added = library.get_added_tokens_decoder()
    return {token.content: id for id, token in added.items() if token.special}


def read_huggingface(
    path: Path, data: bytes, vocab: int | None, companions: Companions | None = None
) -> HuggingFace:
    """Reads tokenizer.json; raises `TokenizerError` where the library refuses it.

    companions: what takes the place of the files beside it.
    """
    from tokenizers import Tokenizer as Library

    companions = companions or Companions.beside(path)
    with _failures(lambda what: damaged(path, what)), quiet():
        library = Library.from_buffer(data)
        library.encode(_PROBE)
        tokenizer = HuggingFace(library, companions)
    check_vocab(path, tokenizer.vocab, vocab)
    return tokenizer


@contextmanager
def _failures(error: Callable[[str], Llama2GPUError]) -> Iterator[None]:
    """Turns the library's exceptions, and the panics of its Rust code, into `error`.

    A panic is a `BaseException` of a class that can't be imported.
    """
    try:
        yield
    except Llama2GPUError:
        raise
    except BaseException as failure:
        if not isinstance(failure, Exception) and type(failure).__name__ != "PanicException":
            raise
        raise error(one_line(failure, 200)) from None
