"""The files beside tokenizer.json that tell which tokens start and end a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llama2gpu.tokenizer.files import read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

#: Looked for, by name, where neither these files nor tokenizer.json tell.
_KNOWN = {
    "bos": ("<|begin_of_text|>", "<s>"),
    "eos": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "</s>"),
}


class Companions:
    """What the files in `folder` say; any of them may be missing.

    Raises `TokenizerError` where one of them is no JSON object.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = read_object(folder / "tokenizer_config.json")
        self._by_name = (self._tokenizer, read_object(folder / "special_tokens_map.json"))
        self._by_id = (
            read_object(folder / "generation_config.json"),
            read_object(folder / "config.json"),
        )

    def ids(
        self, role: Literal["bos", "eos"], library: "Library", default: Sequence[int] = ()
    ) -> list[int]:
        """Ids of a role, best first: all that the files state, or `default`, or well-known ones."""
        named = [_content(file.get(f"{role}_token")) for file in self._by_name]
        stated = [library.token_to_id(name) for name in named if name is not None]
        for file in self._by_id:
            value = file.get(f"{role}_token_id")
            stated.extend(value if isinstance(value, list) else [value])
        known = [library.token_to_id(name) for name in _KNOWN[role]]
        valid = (_valid(ids, library) for ids in (stated, default, known))
        return next(filter(None, valid), [])

    def flag(self, name: str, *, default: bool) -> bool:
        """A switch of tokenizer_config.json."""
        value = self._tokenizer.get(name)
        return value if isinstance(value, bool) else default


def _valid(ids: Sequence[Any], library: "Library") -> list[int]:
    """The ids that have a token, each once."""
    whole = [id for id in ids if type(id) is int and 0 <= id < 1 << 32]
    return [id for id in dict.fromkeys(whole) if library.id_to_token(id) is not None]


def _content(token: object) -> str | None:
    """The text of a token that is written as a string, or as an object with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token.isprintable() else None
