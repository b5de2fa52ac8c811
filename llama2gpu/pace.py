"""How many prompt tokens a step takes beside sequences that decode, from what steps took."""

from collections import defaultdict, deque

#: A step with prompt tokens in it is to take so many times a pure decode step, and on average with
#: the pure ones after it never more than `MOST`.
AIM, MOST = 1.75, 2.0
#: Steps whose least time is a decode step's; two are measured before the first prompt token.
STEPS, SURE = 8, 2
#: Decode steps that a prompt waits for at most after a step that took too long.
REST = 16


class Pace:
    """Keeps prompts from stalling those who decode.

    What a decode step takes is measured by itself, for numbers of sequences within a power of two,
    and apart for steps that are replayed from a graph: those with prompt tokens in them can't be.
    What a prompt token adds to it is corrected by each step that has some.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._steps: dict[tuple[int, bool], deque[float]] = defaultdict(lambda: deque(maxlen=STEPS))
        self._bulk = self._cost = float("inf")  # seconds of a prompt token: alone, and beside
        self._owed = 0.0  # seconds by which those who decode were late

    @property
    def resting(self) -> bool:
        """Whether prompts wait until those who decode have caught up."""
        return self._owed > 0

    def tokens(self, decoding: int) -> int:
        """Prompt tokens of the next step; 0 where a decode step by itself is to be measured."""
        if not decoding:
            return self.chunk
        if self.resting or len(self._steps[decoding.bit_length(), False]) < SURE:
            return 0
        left = (AIM - 1) * self._step(decoding, False)
        return max(1, int(min(self.chunk, left / self._cost))) if self._cost else self.chunk

    def note(
        self, prompt: int, decoding: int, seconds: float, replayed: bool, whole: bool = True
    ) -> None:
        """What a step took, with so many prompt tokens and so many sequences that decoded.

        whole: it launched as much as it read, so that its time is that of a step.
        """
        if not prompt:
            if whole:
                self._steps[decoding.bit_length(), replayed].append(seconds)
            self._owed = max(self._owed - seconds, 0.0)
        elif not decoding:
            self._bulk = min(self._bulk, seconds / prompt)
            self._cost = min(self._cost, 4 * self._bulk)
        elif self._steps[decoding.bit_length(), False]:
            step = self._step(decoding, False)
            found = max((seconds - step) / prompt, (AIM - 1) * step / self.chunk)
            if self._cost < float("inf"):  # one odd step is not believed
                found = min(max(found, self._cost / 2), 2 * self._cost)
            self._cost = min(found, 4 * self._bulk)
            step = self._step(decoding, bool(self._steps[decoding.bit_length(), True]))
            self._owed = min(max(seconds - MOST * step, 0.0), REST * step)

    def _step(self, decoding: int, replayed: bool) -> float:
        """Seconds of a decode step."""
        return min(self._steps[decoding.bit_length(), replayed])
