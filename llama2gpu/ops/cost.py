"""The least that each op must move and compute: what every measured figure is held against."""

from typing import NamedTuple

from llama2gpu.ops.cases import Case


class Cost(NamedTuple):
    """Bytes that must cross the memory bus once, and floating-point operations."""

    bytes: int
    flops: int


def cost(
    op: str,
    case: Case,
    weight_bytes: float = 2.0,
    activation_bytes: int = 2,
    cache_bytes: float | None = None,
) -> Cost:
    """The least cost of an op on a case.

    weight_bytes: per matrix element, scales included. activation_bytes: per activation.
    cache_bytes: per cached element, scales included: 1 + 4 / head_dim in int8; that of an
    activation where not given. Norm weights and the RoPE table are float32.
    """
    cached = activation_bytes if cache_bytes is None else cache_bytes
    return _Costs(case, weight_bytes, activation_bytes, cached).of(op)


class _Costs:
    def __init__(
        self, case: Case, weight_bytes: float, activation_bytes: int, cache_bytes: float
    ) -> None:
        self.c, self.w, self.a = case, weight_bytes, activation_bytes
        self.q = case.heads * case.head_dim
        self.kv = case.kv_heads * case.head_dim
        self.cached = round(2 * self.kv * cache_bytes)  # one token's key and value

    def of(self, op: str) -> Cost:
        found: Cost = getattr(self, op)()
        return found

    def _matmul(self, k: int, n: int, t: int, n_out: int | None = None) -> Cost:
        """Weight and input once, n_out outputs a token (n unless given)."""
        moved = int(n * k * self.w) + t * (k + (n if n_out is None else n_out)) * self.a
        return Cost(moved, 2 * t * k * n)

    def _and_norm(self, matmul: Cost, t: int) -> Cost:
        return Cost(matmul.bytes + 4 * self.c.dim, matmul.flops + 4 * t * self.c.dim)

    def embed(self) -> Cost:
        t, dim = self.c.tokens, self.c.dim
        return Cost(int(t * dim * self.w) + t * dim * self.a + 8 * t, 0)

    def rms_norm(self) -> Cost:
        t, dim = self.c.tokens, self.c.dim
        return Cost(2 * t * dim * self.a + 4 * dim, 4 * t * dim)

    def linear(self) -> Cost:
        return self._matmul(self.c.dim, self.c.hidden, self.c.tokens)

    def rope(self) -> Cost:
        t = self.c.tokens
        return Cost(2 * t * self.q * self.a + t * (4 * self.c.head_dim + 8), 3 * t * self.q)

    def silu_mul(self) -> Cost:
        t, hidden = self.c.tokens, self.c.hidden
        return Cost(3 * t * hidden * self.a, 5 * t * hidden)

    def write_kv(self) -> Cost:
        return Cost(self.c.tokens * (2 * self.kv * self.a + self.cached + 8), 0)

    def attend(self) -> Cost:
        moved = flops = 0
        for cached, new in zip(self.c.cached, self.c.new, strict=True):
            pairs = new * cached + new * (new + 1) // 2  # causal: query, key
            moved += (cached + new) * self.cached * bool(new) + 2 * new * self.q * self.a
            flops += 4 * pairs * self.q
        return Cost(moved, flops)

    def attention(self) -> Cost:
        return self.attend()

    def qkv(self) -> Cost:
        t = self.c.tokens
        matmul = self._and_norm(self._matmul(self.c.dim, self.q + 2 * self.kv, t, self.q), t)
        table = t * (4 * self.c.head_dim + 16)  # cos and sin, position and slot
        return Cost(
            matmul.bytes + t * self.cached + table, matmul.flops + 3 * t * (self.q + self.kv)
        )

    def project_add(self) -> Cost:
        t = self.c.tokens
        matmul = self._matmul(self.q, self.c.dim, t)
        return Cost(matmul.bytes + t * self.c.dim * self.a, matmul.flops + t * self.c.dim)

    def gate_up(self) -> Cost:
        t, hidden = self.c.tokens, self.c.hidden
        matmul = self._and_norm(self._matmul(self.c.dim, 2 * hidden, t, hidden), t)
        return Cost(matmul.bytes, matmul.flops + 5 * t * hidden)

    def logits(self) -> Cost:
        s, vocab = len(self.c.new), self.c.vocab
        matmul = self._and_norm(self._matmul(self.c.dim, vocab, s, 0), s)
        return Cost(matmul.bytes + 4 * s * vocab, matmul.flops)

    def sample(self) -> Cost:
        s, vocab = len(self.c.new), self.c.vocab
        return Cost(4 * s * vocab + 12 * s, 0)
