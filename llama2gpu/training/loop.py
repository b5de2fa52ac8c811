"""The training loop: schedule, optimizer, steps, and held-out loss."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llama2gpu.errors import RequestError
from llama2gpu.training.data import Corpus
from llama2gpu.training.net import Net

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
#: Share of the highest learning rate that the last step has.
FLOOR = 0.1
#: Held-out windows that are looked at, at most.
HELD_OUT_WINDOWS = 128


@dataclass(frozen=True)
class Settings:
    """How long, how fast, and how much at once: `batch` sequences, `accumulate` times a step."""

    steps: int
    batch: int
    accumulate: int
    lr: float
    warmup: int
    seed: int
    eval_every: int
    dtype: torch.dtype

    def tokens(self, context: int) -> int:
        """Tokens that one step sees."""
        return self.batch * self.accumulate * context

    def rate(self, step: int) -> float:
        """The learning rate of a step from 1 on: linear warm-up, then a cosine to the floor."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        part = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * part)) / 2)


@dataclass(frozen=True)
class Record:
    """One step: its mean training loss and, where it was measured, the held-out loss after it."""

    step: int
    loss: float
    held_out: float | None
    lr: float
    tokens_per_second: float


def make_optimizer(net: Net) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), with weight decay on matrices alone."""
    groups = [
        {"params": list(net.matrices()), "weight_decay": WEIGHT_DECAY},
        {"params": list(net.vectors()), "weight_decay": 0.0},
    ]
    device = net.norm.device.type
    return torch.optim.AdamW(groups, betas=BETAS, fused=device in ("cpu", "cuda"))


class Trainer:
    """A model, its optimizer and its text; `steps` trains and tells of each step."""

    def __init__(self, net: Net, corpus: Corpus, settings: Settings) -> None:
        self.net, self.corpus, self.settings = net, corpus, settings
        self.optimizer = make_optimizer(net)
        self.device = net.norm.device

    def steps(self, done: int) -> Iterator[Record]:
        """The steps after the first `done`, each yielded once the weights have changed."""
        s = self.settings
        for step in range(done + 1, s.steps + 1):
            began = time.perf_counter()
            loss = self.step(step)
            seconds = time.perf_counter() - began
            measured = step == s.steps or step % s.eval_every == 0
            yield Record(
                step=step,
                loss=loss,
                held_out=self.held_out() if measured else None,
                lr=s.rate(step),
                tokens_per_second=s.tokens(self.corpus.context) / seconds,
            )

    @torch.no_grad()
    def held_out(self) -> float:
        """The mean loss over the held-out windows; raises `RequestError` where it is no number."""
        losses, counts = [], []
        for windows in self.corpus.held_out_batches(self.settings.batch, HELD_OUT_WINDOWS):
            losses.append(self._loss(windows).item())
            counts.append(len(windows))
        loss = math.fsum(map(float.__mul__, losses, map(float, counts))) / sum(counts)
        if not math.isfinite(loss):
            raise RequestError(f"the held-out loss is {loss}: start again with a lower --lr")
        return loss

    def step(self, step: int) -> float:
        """Trains on the batches of one step, the first being 1, and returns their mean loss."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate(step)
        total = torch.zeros((), device=self.device)
        for part in range(s.accumulate):
            index = (step - 1) * s.accumulate + part
            part_loss = self._loss(self.corpus.batch(s.seed, index, s.batch)) / s.accumulate
            torch.autograd.backward(part_loss)
            total += part_loss.detach()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not math.isfinite(loss := total.item()):
            raise RequestError(f"the loss of step {step} is {loss}: start again with a lower --lr")
        return loss

    def _loss(self, windows: torch.Tensor) -> torch.Tensor:
        windows = windows.to(self.device, non_blocking=True)
        mixed = self.settings.dtype != torch.float32
        with torch.autocast(self.device.type, self.settings.dtype, enabled=mixed):
            loss: torch.Tensor = self.net(windows[:, :-1], windows[:, 1:])
        return loss


def training_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, lambda: False) for name in names]
    fast = device.type == "cpu" and any(check() for check in checks)
    return torch.bfloat16 if fast else torch.float32
