"""What GGUF calls the tensors and the constants of its `llama` architecture.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the `gguf` package.
"""

from llama2gpu.checkpoints.stored import NameTable

MAGIC = b"GGUF"
ARCHITECTURE = "llama"

#: q and k are in adjacent-pair RoPE order, as the canonical ones are.
NAMES = NameTable(
    top={
        "embed": "token_embd.weight",
        "norm": "output_norm.weight",
        "output": "output.weight",
    },
    layer="blk.{n}.{kind}.weight",
    kinds={
        "attention_norm": "attn_norm",
        "wq": "attn_q",
        "wk": "attn_k",
        "wv": "attn_v",
        "wo": "attn_output",
        "ffn_norm": "ffn_norm",
        "w1": "ffn_gate",
        "w2": "ffn_down",
        "w3": "ffn_up",
    },
)

#: Divisors of the rotary frequencies, float32 [head_dim / 2]: how llama3's scaling is stored.
ROPE_FREQS = "rope_freqs.weight"


class General:
    """Keys of any file."""

    ARCHITECTURE = "general.architecture"
    ALIGNMENT = "general.alignment"
    NAME = "general.name"
    FILE_TYPE = "general.file_type"
    QUANTIZATION_VERSION = "general.quantization_version"
    SPLIT = "split.no"  # from 0
    SPLITS = "split.count"
    SPLIT_TENSORS = "split.tensors.count"  # of all parts


class Model:
    """Keys of the model's sizes and constants."""

    CONTEXT = "llama.context_length"
    DIM = "llama.embedding_length"
    LAYERS = "llama.block_count"
    HIDDEN = "llama.feed_forward_length"
    HEADS = "llama.attention.head_count"
    KV_HEADS = "llama.attention.head_count_kv"
    KEY_LENGTH = "llama.attention.key_length"
    VALUE_LENGTH = "llama.attention.value_length"
    NORM_EPS = "llama.attention.layer_norm_rms_epsilon"
    SLIDING_WINDOW = "llama.attention.sliding_window"
    VOCAB = "llama.vocab_size"
    EXPERTS = "llama.expert_count"
    ROPE_DIM = "llama.rope.dimension_count"
    ROPE_THETA = "llama.rope.freq_base"
    ROPE_LINEAR = "llama.rope.scale_linear"  # the factor's name before there were types
    ROPE_TYPE = "llama.rope.scaling.type"
    ROPE_FACTOR = "llama.rope.scaling.factor"
    ROPE_ORIGINAL = "llama.rope.scaling.original_context_length"
    ROPE_ATTENTION = "llama.rope.scaling.attn_factor"  # times YaRN's own 0.1 ln(factor) + 1
    ROPE_ATTENTION_ALL = "llama.rope.scaling.yarn_attn_factor"  # instead of it
    ROPE_BETA_FAST = "llama.rope.scaling.yarn_beta_fast"
    ROPE_BETA_SLOW = "llama.rope.scaling.yarn_beta_slow"


class Words:
    """Keys of the tokenizer; the types of its tokens are `vocabulary.PieceType`."""

    MODEL = "tokenizer.ggml.model"
    PRE = "tokenizer.ggml.pre"
    TOKENS = "tokenizer.ggml.tokens"
    SCORES = "tokenizer.ggml.scores"
    TYPES = "tokenizer.ggml.token_type"
    MERGES = "tokenizer.ggml.merges"
    BOS = "tokenizer.ggml.bos_token_id"
    EOS = "tokenizer.ggml.eos_token_id"
    EOT = "tokenizer.ggml.eot_token_id"
    EOM = "tokenizer.ggml.eom_token_id"
    UNKNOWN = "tokenizer.ggml.unknown_token_id"
    PADDING = "tokenizer.ggml.padding_token_id"
    ADD_BOS = "tokenizer.ggml.add_bos_token"
    ADD_EOS = "tokenizer.ggml.add_eos_token"
    SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
    TRIMS_SPACES = "tokenizer.ggml.remove_extra_whitespaces"
    CHAT_TEMPLATE = "tokenizer.chat_template"


#: Values of `Words.MODEL`: SentencePiece's BPE, and byte-level BPE.
SCORED, MERGED = "llama", "gpt2"
