"""Random arguments for an op at the sizes of a model, in sets that read different memory."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from llama2gpu.backends.base import Batch, LayerCache, Norm, Rope
from llama2gpu.measure.kernel_work import PAGE, Work
from llama2gpu.ops.cases import Case
from llama2gpu.ops.cost import Cost, cost
from llama2gpu.ops.rope import rope_table
from llama2gpu.ops.sample import SampleParams
from llama2gpu.quant import Dense, Int4, Int8, Weight

#: Ops of a cache, which int8 stands for where it is not a matrix.
CACHE_OPS = ("attention", "write_kv")


def case_of(work: Work) -> Case:
    """The work's sizes and batch, as the op contract's cases say them."""
    c = work.config
    new = work.m // work.sequences
    heads, head_dim = c.heads, c.head_dim
    if work.op == "project_add" and work.k != c.q_rows:
        heads, head_dim = 1, work.k or 1  # its columns are the hidden values
    return Case(
        work.case,
        cached=(work.context - new,) * work.sequences,
        new=(new,) * work.sequences,
        dim=c.dim,
        heads=heads,
        kv_heads=c.kv_heads,
        head_dim=head_dim,
        hidden=c.hidden,
        vocab=c.vocab,
        page=PAGE,
    )


def least(work: Work, dtype: torch.dtype) -> Cost:
    """Bytes and operations that the work takes at least, with activations of a type."""
    is_cache = work.op in CACHE_OPS
    dense = is_cache or work.weight == "dense"
    codes = 1 + 4 / work.config.head_dim if is_cache and work.weight == "int8" else None
    weight_bytes = float(dtype.itemsize) if dense else work.bytes_per_value
    return cost(work.op, case_of(work), weight_bytes, dtype.itemsize, codes)


def random_matrices(
    work: Work, dtype: torch.dtype, device: torch.device, count: int, seed: int
) -> Iterator[Weight]:
    """So many matrices for a work that reads one; their rows times x are of the size of x.

    All have the same rows, each in another order: that is other memory, and quickly made.
    """
    first = _matrix(work, dtype, torch.Generator(device).manual_seed(seed))
    rows = work.n
    for i in range(count):
        start = i * rows // count // 2 * 2
        yield first.rows(torch.arange(start, start + rows, device=device) % rows)


class KernelInputs:
    """One work's arguments, without its matrix: `arguments(i)` of set i.

    What a model's layers share is shared by the sets: the batch and the RoPE table; the activations
    too where there is a matrix to read. Nothing is zero.
    """

    def __init__(self, work: Work, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.work, self.dtype, self.device = work, dtype, device
        self.config, self.case = work.config, case_of(work)
        self._random = torch.Generator(device).manual_seed(seed)

    @cached_property
    def batch(self) -> Batch:
        """New tokens at the end of the context, on pages in shuffled order."""
        w, each = self.work, self.work.m // self.work.sequences
        pages = -(-w.context // PAGE)
        table = torch.randperm(
            w.sequences * pages, generator=self._random, device=self.device, dtype=torch.int32
        ).view(w.sequences, pages)
        positions = torch.arange(w.context - each, w.context, device=self.device)
        slots = table[:, positions // PAGE].long() * PAGE + positions % PAGE
        counts = torch.arange(w.sequences + 1, dtype=torch.int32, device=self.device)
        return Batch(
            positions=positions.repeat(w.sequences),
            slots=slots.flatten(),
            starts=counts * each,
            lengths=torch.full_like(counts[1:], w.context),
            block_table=table,
            new_counts=self.case.new,
            cached_counts=(w.context,) * w.sequences,
        )

    @cached_property
    def rope(self) -> Rope:
        """The model's table as far as the context."""
        table = rope_table(self.config, self.work.context)
        return Rope(*(x.to(self.device) for x in table))

    @cached_property
    def norm(self) -> Norm:
        """Weights about 1."""
        noise = torch.randn(self.config.dim, generator=self._random, device=self.device)
        return Norm(1 + 0.1 * noise, self.config.norm_eps)

    @cached_property
    def shared(self) -> dict[str, Any]:
        """Activations of a work that reads a matrix."""
        return self._activations()

    def arguments(self) -> dict[str, Any]:
        """Another set; its cache, and its activations where there is no matrix, are its own."""
        made = dict(self.shared) if self.work.has_matrix else self._activations()
        if self.work.op in ("qkv", *CACHE_OPS):
            made["cache"] = self._cache()
        return made

    def _activations(self) -> dict[str, Any]:
        c, op, m, values = self.config, self.work.op, self.work.m, self._values
        if op in ("linear", "rms_norm", "gate_up", "logits", "qkv"):
            made: dict[str, Any] = {"x": values(m, c.dim)}
            if op != "linear":
                made["norm"] = self.norm
            return made | ({"rope": self.rope, "batch": self.batch} if op == "qkv" else {})
        if op == "attention":
            return {"q": values(m, c.heads, c.head_dim), "batch": self.batch}
        if op == "write_kv":
            k, v = (values(m, c.kv_heads, c.head_dim) for _ in range(2))
            return {"k": k, "v": v, "batch": self.batch}
        if op == "project_add":
            return {"a": values(m, self.work.k or 1), "x": values(m, c.dim)}
        if op == "rope":
            x = values(m, c.heads, c.head_dim)
            return {"x": x, "rope": self.rope, "positions": self.batch.positions}
        if op == "embed":
            tokens = torch.randint(c.vocab, (m,), generator=self._random, device=self.device)
            return {"tokens": tokens}
        if op == "sample":
            logits = torch.randn(m, c.vocab, generator=self._random, device=self.device)
            return {"logits": 4 * logits, "params": self._sampling()}
        return {"x": values(m, 2 * c.hidden)}  # silu_mul

    def _cache(self) -> LayerCache:
        c = self.config
        shape = (self.batch.block_table.numel() + 1, c.kv_heads, PAGE, c.head_dim)
        if self.work.op == "qkv" or self.work.weight != "int8":
            return LayerCache(*(self._values(*shape) for _ in "kv"))
        k, v = (
            torch.randint(
                -127, 128, shape, dtype=torch.int8, generator=self._random, device=self.device
            )
            for _ in "kv"
        )
        return LayerCache(k, v, *(_scales(shape[:-1], self._random).float() / 73 for _ in "kv"))

    def _sampling(self) -> SampleParams:
        """Temperatures with top-k and top-p, a seed for each sequence."""
        m, place = self.work.m, self.device
        reals = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.0, "repetition": 1.0,
                 "presence": 0.0, "frequency": 0.0}  # fmt: skip
        made: dict[str, Any] = {n: torch.full((m,), x, device=place) for n, x in reals.items()}
        every = torch.arange(m, device=place)
        return SampleParams(**made, top_k=torch.full_like(every, 40), seed=every * 7919, draw=every)

    def _values(self, *shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=self._random, device=self.device)
        return drawn.to(self.dtype)


def _matrix(work: Work, dtype: torch.dtype, random: torch.Generator) -> Weight:
    n, k, place = work.n, work.k or 1, random.device
    if work.weight == "dense":
        data = torch.randn(n, k, generator=random, device=place)
        return Dense(data.mul_(k**-0.5).to(dtype))
    scales = _scales((n, k // work.group), random) * k**-0.5
    if work.weight == "int8":
        shape, spread = (n, k), 73.0  # of whole numbers from -127 to 127
        data = torch.randint(-127, 128, shape, dtype=torch.int8, generator=random, device=place)
        return Int8(data, (scales / spread).half())
    words = torch.randint(
        -(1 << 31), 1 << 31, (n, k // 8), dtype=torch.int64, generator=random, device=place
    )
    return Int4(words.int(), (scales / 4.6).half())  # the spread of -8 to 7


def _scales(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    """Between a half and one and a half."""
    return 0.5 + torch.rand(shape, generator=random, device=random.device)
