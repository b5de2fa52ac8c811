"""Sequences that decode on the device, a step launched before the last one's tokens are read."""

from collections.abc import Collection
from collections.abc import Sequence as Seq

from torch import Tensor

from llama2gpu.backends.base import Batch
from llama2gpu.backends.loop import DecodeLoop, Results
from llama2gpu.ops.sample import SampleParams
from llama2gpu.request import Sequence, Token


class Decoding:
    """A fixed group of sequences in a loop; when one joins or leaves, a new group begins.

    page: tokens of a page. What is under way must be read before the next group begins.
    """

    def __init__(self, loop: DecodeLoop, page: int) -> None:
        self.loop, self.page = loop, page
        self.group: list[Sequence] = []

    @property
    def ahead(self) -> int:
        """Steps that were launched and not read."""
        return len(self.loop.flying)

    def under_way(self, running: Seq[Sequence]) -> bool:
        """Whether there is a step to read, or to launch as things are."""
        return bool(self.ahead) or self._go_on(running)

    def takes(self, sequences: Collection[Sequence]) -> bool:
        """Whether these can be a group: they decode, and draw as the device does."""
        return bool(sequences) and all(s.decoding and not s.state.c_sampler for s in sequences)

    def begin(
        self, sequences: Seq[Sequence], tokens: Tensor, batch: Batch, params: SampleParams
    ) -> None:
        """Takes a new group, whose every sequence has one new token."""
        self.group = list(sequences)
        self.loop.start(tokens, batch, params, most_asked(self.group))

    def launch(self, running: Seq[Sequence]) -> None:
        """Launches steps as far ahead as may be: all go on, and have room and pages for it."""
        while self.ahead <= self.loop.lag and self._go_on(running):
            self.loop.launch()

    def read(self) -> list[tuple[Sequence, Token]]:
        """The tokens of the oldest step; those of sequences that have ended are left out."""
        drawn = [x for x in tokens_of(self.group, self.loop.read()) if x[0].reason is None]
        for s, _ in drawn:
            s.cached += 1
        return drawn

    def drop(self) -> None:
        """Ends the group and forgets what was launched: sequences are as they were last read."""
        self.group = []
        self.loop.forget()

    def _go_on(self, running: Seq[Sequence]) -> bool:
        return (
            bool(self.group)
            and self.group == list(running)
            and all(
                s.left > self.ahead and s.cached + self.ahead < len(s.pages) * self.page
                for s in self.group
            )
        )


def most_asked(sequences: Seq[Sequence]) -> int:
    """How many likeliest tokens any of them reports."""
    return max(s.request.params.logprobs or 0 for s in sequences)


def tokens_of(sequences: Seq[Sequence], results: Results) -> list[tuple[Sequence, Token]]:
    """Each sequence's token, with as many of the likeliest as it reports."""
    return [
        (s, Token(token, logprob, top[: s.request.params.logprobs or 0]))
        for s, token, logprob, top in zip(sequences, *results, strict=True)
    ]
