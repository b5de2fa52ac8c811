"""Text to token ids and back, for every tokenizer format that a Llama comes with."""

from llama2gpu.tokenizer.base import StreamDecoder, Token, Tokenizer, well_formed
from llama2gpu.tokenizer.embedded import embedded_file
from llama2gpu.tokenizer.load import find_tokenizer, load_tokenizer, tokenizer_of

__all__ = [
    "StreamDecoder",
    "Token",
    "Tokenizer",
    "embedded_file",
    "find_tokenizer",
    "load_tokenizer",
    "tokenizer_of",
    "well_formed",
]
