"""Text to token ids and back, for every tokenizer format that a Llama comes with."""

from llama2gpu.tokenizer.base import StreamDecoder, Token, Tokenizer, well_formed
from llama2gpu.tokenizer.load import find_tokenizer, load_tokenizer

__all__ = ["StreamDecoder", "Token", "Tokenizer", "find_tokenizer", "load_tokenizer", "well_formed"]
