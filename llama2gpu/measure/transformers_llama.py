"""Hugging Face's Llama on the weights of a checkpoint, generating in its leanest loop."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llama2gpu.backends.matrix import DenseMatrix
from llama2gpu.checkpoints import Checkpoint, tensor_shapes
from llama2gpu.checkpoints.huggingface import NAMES, half_split_rows
from llama2gpu.checkpoints.huggingface_fields import config_fields
from llama2gpu.measure.limits import synchronize
from llama2gpu.model import Model
from llama2gpu.quant import Dense

Compile = Callable[[Any], Any]


def transformers_llama(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, shared: dict[str, Tensor]
) -> Any:
    """Its `LlamaForCausalLM` with the same weights; quantized ones are dequantized.

    shared: tensors by canonical name that are taken as they are.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    ours = checkpoint.config
    config = LlamaConfig(**config_fields(ours, dtype))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {NAMES(name): tensor for name, tensor in shared.items()}
    for name, shape in tensor_shapes(ours):
        if name not in shared:
            stored = checkpoint.weight(name) if len(shape) == 2 else Dense(checkpoint.read(name))
            value = half_split_rows(name, stored, ours.head_dim).dequantize(dtype)
            state[NAMES(name)] = value.to(device, copy=True)
    model.load_state_dict(state, strict=not ours.tied, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # a buffer on meta
    return model.requires_grad_(False).train(False)


def shared_tensors(model: Model) -> dict[str, Tensor]:
    """Tensors that a backend keeps as transformers does, by canonical name: no second copy.

    All but queries and keys, whose rows are in another order, of dense matrices of the torch
    backend; none of others.
    """
    c, w = model.config, model.weights
    top = {"embed": w.embed, "output": w.output}
    found = {name: kept.data for name, kept in top.items() if _is_plain(kept, model)}
    if c.tied:
        found.pop("output", None)
    for n, layer in enumerate(w.layers):
        parts = {"wo": (layer.w_o, 0, c.dim), "w2": (layer.w_2, 0, c.dim),
                 "w1": (layer.w_13, 0, c.hidden), "w3": (layer.w_13, c.hidden, 2 * c.hidden),
                 "wv": (layer.w_qkv, c.q_rows + c.kv_rows, c.q_rows + 2 * c.kv_rows)}  # fmt: skip
        for name, (kept, start, end) in parts.items():
            if _is_plain(kept, model):
                found[f"layers.{n}.{name}"] = kept.data[start:end]
    return found


def _is_plain(kept: Any, model: Model) -> bool:
    return isinstance(kept, DenseMatrix | Dense) and kept.data.dtype == model.dtype


class Greedy:
    """Generates on a model of transformers, with as little around it as its cache allows.

    compile: makes the step of a decoded token fast, on a static cache of `length` tokens; without
    it the cache grows. Prompts are not compiled, nor are they by transformers' own `generate`.
    """

    def __init__(self, model: Any, length: int, compile: Compile | None = None) -> None:
        from transformers import DynamicCache, StaticCache

        self.model, self.device = model, model.device
        self._new = partial(DynamicCache, config=model.config)
        self._static = StaticCache(config=model.config, max_cache_len=length) if compile else None
        self._step = compile(self._forward) if compile else self._forward

    def _forward(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """The likeliest next token [1, 1] and its logits [1, vocab]."""
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1]
        return logits.argmax(-1, keepdim=True), logits

    def _cache(self) -> Any:
        if self._static is None:
            return self._new()
        self._static.reset()  # type: ignore[no-untyped-call]
        return self._static

    def _next(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        if self._static is not None:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        token, logits = self._step(ids, cache)
        return token.clone(), logits  # a graph's next replay writes where it lies

    @torch.no_grad()
    def logits(self, prompt: Sequence[int], given: Sequence[int]) -> Tensor:
        """Float32 logits [1 + len(given), vocab] behind the prompt and each given token."""
        cache = self._cache()
        found = [self._forward(self._ids(prompt), cache)[1].float().cpu()]
        for token in given:
            found.append(self._next(self._ids([token]), cache)[1].float().cpu())
        return torch.cat(found)

    @torch.no_grad()
    def answer(
        self, prompt: Sequence[int], tokens: int, clock: Callable[[], float]
    ) -> tuple[float, float]:
        """Seconds until the first token is there, and from then on to `tokens` more."""
        ids, cache = self._ids(prompt), self._cache()
        synchronize(self.device)
        began = clock()
        token = self._forward(ids, cache)[0]
        drawn = [token]
        token.tolist()
        ready = clock()
        for _ in range(tokens):
            token = self._next(token, cache)[0]
            drawn.append(token)
        torch.cat(drawn).tolist()
        return ready - began, clock() - ready

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], device=self.device)


def compiler(device: torch.device) -> Compile:
    """What compiles a step for a device: on CUDA with graphs, which launching would not hold up."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"

    def compiled(step: Any) -> Any:
        return torch.compile(step, mode=mode, fullgraph=True, dynamic=False)

    return compiled
