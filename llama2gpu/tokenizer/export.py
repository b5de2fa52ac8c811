"""A tokenizer as data, from which other formats are written.

Every function raises `TokenizerError` where the data could not give the same tokens.
"""

from llama2gpu.tokenizer.base import Tokenizer
from llama2gpu.tokenizer.export_huggingface import of_huggingface
from llama2gpu.tokenizer.export_parts import pairs_of, refuse
from llama2gpu.tokenizer.huggingface import HuggingFace
from llama2gpu.tokenizer.huggingface_decoder import byte_letters
from llama2gpu.tokenizer.llama2c import Llama2C
from llama2gpu.tokenizer.sentencepiece import SPACE, SentencePiece
from llama2gpu.tokenizer.sentencepiece_model import read_spec
from llama2gpu.tokenizer.tiktoken_format import WORDS, Tiktoken
from llama2gpu.vocabulary import MergedVocabulary, PieceType, ScoredVocabulary

Vocabulary = ScoredVocabulary | MergedVocabulary


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The pieces of a tokenizer, and how it joins them."""
    if isinstance(tokenizer, SentencePiece):
        return _of_sentencepiece(tokenizer)
    if isinstance(tokenizer, Llama2C):
        return _of_llama2c(tokenizer)
    if isinstance(tokenizer, Tiktoken):
        return _of_tiktoken(tokenizer)
    assert isinstance(tokenizer, HuggingFace)
    return of_huggingface(tokenizer)


def _of_sentencepiece(tokenizer: SentencePiece) -> ScoredVocabulary:
    processor = tokenizer.processor
    try:
        spec = read_spec(processor.serialized_model_proto())
    except ValueError as error:
        refuse(f"its file holds {error}")
    if not spec.merges:
        refuse("it is a unigram model, not BPE")
    if spec.replaces_characters or not spec.escapes_spaces:
        refuse("it normalizes characters before it splits a text")
    ids = range(tokenizer.vocab)
    return ScoredVocabulary(
        [processor.id_to_piece(id) for id in ids],
        [processor.get_score(id) for id in ids],
        spec.types,
        tokenizer.bos_id,
        tokenizer.eos_ids,
        tokenizer.adds_bos,
        spec.space_prefix,
        spec.trims_spaces,
    )


def _of_llama2c(tokenizer: Llama2C) -> ScoredVocabulary:
    try:
        pieces = [text.decode().replace(" ", SPACE) for text in tokenizer.texts]
    except UnicodeDecodeError:
        refuse("one of its pieces is no UTF-8")
    special = ["<unk>", "<s>", "</s>"]
    fixed = [PieceType.UNKNOWN, PieceType.CONTROL, PieceType.CONTROL, *[PieceType.BYTE] * 256]
    normal = [PieceType.NORMAL] * (tokenizer.vocab - len(fixed))
    return ScoredVocabulary(special + pieces[3:], tokenizer.scores, fixed + normal)


def _of_tiktoken(tokenizer: Tiktoken) -> MergedVocabulary:
    letters = {byte: letter for letter, byte in byte_letters().items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in tokenizer.ranks}
    controls = list(tokenizer.names)
    types = [PieceType.NORMAL] * len(spelled) + [PieceType.CONTROL] * len(controls)
    return MergedVocabulary(
        [*spelled.values(), *controls],
        types,
        [f"{spelled[a]} {spelled[b]}" for a, b in pairs_of(tokenizer.ranks)],
        [WORDS],
        whole_words=True,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        adds_bos=tokenizer.adds_bos,
    )
