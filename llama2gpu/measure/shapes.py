"""Sizes of well-known Llamas, so that they can be measured without their weights."""

from llama2gpu.config import Config

SHAPES = {
    "stories260k": Config(
        dim=64, hidden=172, layers=5, heads=8, kv_heads=4, head_dim=8, vocab=512, context=512,
    ),
    "llama-1.1b": Config(
        dim=2048, hidden=5632, layers=22, heads=32, kv_heads=4, head_dim=64, vocab=32000,
        context=2048,
    ),
    "llama2-7b": Config(
        dim=4096, hidden=11008, layers=32, heads=32, kv_heads=32, head_dim=128, vocab=32000,
        context=4096,
    ),
    "llama2-13b": Config(
        dim=5120, hidden=13824, layers=40, heads=40, kv_heads=40, head_dim=128, vocab=32000,
        context=4096,
    ),
    "llama2-70b": Config(
        dim=8192, hidden=28672, layers=80, heads=64, kv_heads=8, head_dim=128, vocab=32000,
        context=4096,
    ),
    "llama3-8b": Config(
        dim=4096, hidden=14336, layers=32, heads=32, kv_heads=8, head_dim=128, vocab=128256,
        context=8192, rope_theta=500000.0,
    ),
}  # fmt: skip
