"""The files beside tokenizer.json that tell which tokens start and end a text."""

from collections.abc import Mapping, Sequence
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


_NAMES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)


class Companions:
    """What these files say, objects by file name; any of them may be missing."""

    def __init__(self, objects: Mapping[str, Mapping[str, Any]]) -> None:
        self._tokenizer, named, *by_id = (objects.get(name, {}) for name in _NAMES)
        self._by_name, self._by_id = (self._tokenizer, named), by_id

    @classmethod
    def beside(cls, path: Path) -> "Companions":
        """Those in the folder of a file; `TokenizerError` where one is no JSON object."""
        return cls({name: read_object(path.parent / name) for name in _NAMES})

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
