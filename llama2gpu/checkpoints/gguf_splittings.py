"""How the byte-level tokenizers within GGUF files split a text into words, by llama.cpp's names."""

from collections.abc import Sequence
from dataclasses import dataclass

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_LLAMA_3 = rf"{_SUFFIX}|{_HEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN_2 = rf"{_SUFFIX}|{_HEAD}\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_MARK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"


def _cased(suffix: str, digits: str) -> str:
    """Words that begin at a change of case: Mistral's tekken, and GPT-4o's."""
    return (
        rf"{_HEAD}{_UPPER}*{_LOWER}+{suffix}|{_HEAD}{_UPPER}+{_LOWER}*{suffix}|{digits}"
        rf"|{_CASED_REST}"
    )


#: Letters with case, as DeepSeek's first tokenizer lists them.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ"
    "-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK"
    "-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-"
    "𐳲𑢠-𑣟𞤀-𞥃"
)


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer finds words.

    names: values of `Words.PRE`. words, whole_words: as of `MergedVocabulary`. adds_bos: where the
    file does not tell.
    """

    names: Sequence[str]
    words: Sequence[str]
    whole_words: bool = False
    adds_bos: bool = False


#: What llama.cpp calls the ways in which Llamas split words.
SPLITTINGS = (
    Splitting(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"),
        (_LLAMA_3,),
        whole_words=True,
        adds_bos=True,
    ),
    Splitting(("tekken",), (_cased("", r"\p{N}"),), whole_words=True, adds_bos=True),
    Splitting(("gpt-4o", "llama4", "kanana2"), (_cased(f"{_SUFFIX}?", r"\p{N}{1,3}"),)),
    Splitting(("dbrx", "smaug-bpe"), (_LLAMA_3,)),
    Splitting(("glm4", "glm5"), (_LLAMA_3,), whole_words=True),
    Splitting(
        (
            *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "mellum", "exaone4"),
            *("gigachat", "a.x-4.0", "granite-docling"),
        ),
        (_GPT_2,),
    ),
    Splitting(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (r"\p{N}", _GPT_2),
    ),
    Splitting(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), (_QWEN_2,)),
    Splitting(
        ("seed-coder",),
        (
            rf"{_SUFFIX}|{_HEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Splitting(("minicpm5",), (r"\p{N}{1,3}", _LLAMA_3), whole_words=True),
    Splitting(("poro-chat", "bloom", "gpt3-finnish"), (" ?[^(\\s|.,!?…。，、।۔،)]+",)),
    Splitting(("viking",), (" ?[^(\\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    Splitting(
        ("deepseek-llm",),
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _PUNCTUATION, r"\s+$", _CJK, r"\p{N}+"),
    ),
    Splitting(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    Splitting(
        ("deepseek-v3", "hunyuan-dense"),
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            rf"{_ASCII_MARK}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Splitting(("falcon",), (r"[\p{P}$+<=>^~|`]+", _GPT_2, "[0-9][0-9][0-9]")),
    Splitting(("default",), (r"[\p{P}$+<=>^~|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
)


def find_splitting(name: str) -> Splitting | None:
    """The one of that name; None where there is none."""
    return next((splitting for splitting in SPLITTINGS if name in splitting.names), None)
