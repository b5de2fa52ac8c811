"""Llama 3's own tokenizer.model: tiktoken's text of ranks, and 256 control tokens after them.

A line is the base64 of a token's bytes, a space and its rank. Words that are tokens stay whole,
others are merged from bytes by lowest rank, as tiktoken does.
Source: Meta's llama3 and llama-models, tokenizer.py.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama2gpu.errors import TokenizerError
from llama2gpu.tokenizer.base import Token, Tokenizer
from llama2gpu.tokenizer.files import MAX_TOKENS, check_vocab, damaged, read_object
from llama2gpu.tokenizer.merge import merge

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROLS = 256
_RESERVED = ""
_LLAMA_3 = (
    *("begin_of_text", "end_of_text", _RESERVED, _RESERVED, _RESERVED, _RESERVED),
    *("start_header_id", "end_header_id", _RESERVED, "eot_id"),
)
_LLAMA_3_1 = (
    *("begin_of_text", "end_of_text", _RESERVED, _RESERVED, "finetune_right_pad_id", "step_id"),
    *("start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag", "image"),
)
_STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


class Tiktoken(Tokenizer):
    """Llama 3's tokenizer; `ranks` are the tokens in order of rank, `controls` their names."""

    format = "tiktoken"
    leading = 0

    def __init__(self, ranks: Mapping[bytes, int], controls: Sequence[str]) -> None:
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import Split

        self.ranks = ranks
        self._texts = list(ranks)
        self.names = {name: len(ranks) + n for n, name in enumerate(controls)}
        self._split = Split(Regex(WORDS), behavior="isolated")
        self.vocab = len(ranks) + len(controls)
        self.bos_id = self.names["<|begin_of_text|>"]
        self.eos_ids = tuple(self.names[name] for name in _STOPS if name in self.names)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word, _ in self._split.pre_tokenize_str(text):
            data = word.encode()
            rank = self.ranks.get(data)
            ids.extend([rank] if rank is not None else self._merged(data))
        return ids

    def _merged(self, data: bytes) -> list[int]:
        return merge([self.ranks[data[n : n + 1]] for n in range(len(data))], self._join)

    def _join(self, left: int, right: int) -> tuple[float, int] | None:
        rank = self.ranks.get(self._texts[left] + self._texts[right])
        return None if rank is None else (rank, rank)

    def _token(self, id: int) -> Token:
        if id < len(self._texts):
            return Token(self._texts[id])
        name = next(name for name, control in self.names.items() if control == id)
        return Token(name.encode(), control=True)

    def _controls(self) -> Mapping[str, int]:
        return self.names


def read_tiktoken(path: Path, data: bytes, vocab: int | None) -> Tiktoken:
    """Reads Llama 3's ranks; with the control tokens they must fill `vocab` exactly."""
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(data.splitlines()):
        token, rank = _line(path, n, line)
        if rank != n or token in ranks or n >= MAX_TOKENS:
            raise damaged(path, f"line {n + 1} is out of order or repeated")
        ranks[token] = rank
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise damaged(path, "it lacks some of the 256 bytes")
    check_vocab(path, len(ranks) + _CONTROLS, vocab, padding=0)
    return Tiktoken(ranks, _control_names(_LLAMA_3 if _is_llama_3_0(path) else _LLAMA_3_1))


def _line(path: Path, n: int, line: bytes) -> tuple[bytes, int]:
    try:
        token, rank = line.split(b" ")
        return b64decode(token, validate=True), int(rank)
    except ValueError:
        raise damaged(path, f"line {n + 1} is no base64 token and rank") from None


def _control_names(known: Sequence[str]) -> list[str]:
    """The 256 names, reserved ones numbered as they come."""
    names: list[str] = []
    reserved = 0
    for name in (*known, *[_RESERVED] * (_CONTROLS - len(known))):
        names.append(f"<|{name or f'reserved_special_token_{reserved}'}|>")
        reserved += name == _RESERVED
    return names


def _is_llama_3_0(path: Path) -> bool:
    """Whether params.json beside the file tells of the first Llama 3: 3.1 began to scale RoPE."""
    try:
        params = read_object(path.parent / "params.json")
    except TokenizerError:
        return False
    return bool(params) and not params.get("use_scaled_rope", False)
