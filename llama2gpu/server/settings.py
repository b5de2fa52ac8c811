"""What a server is told when it starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and names of one server.

    name: what the model is called. api_key: what clients must send; None asks for nothing.
    max_batch: sequences that run at once. queue: sequences that may wait beside them.
    timeout: seconds of a request at most. grace: seconds that running requests get at the stop.
    max_body: bytes of a request. cors: origins whose pages may call.
    local: whether it listens to this machine alone.
    predict, temperature: tokens of a job's answer at most, and how it is sampled.
    """

    name: str
    api_key: str | None = None
    max_batch: int = 32
    queue: int = 128
    timeout: float = 600.0
    grace: float = 30.0
    max_body: int = 1 << 20
    cors: tuple[str, ...] = ()
    local: bool = False
    predict: int = 512
    temperature: float = 0.5

    @property
    def capacity(self) -> int:
        """Sequences that run or wait at most."""
        return self.max_batch + self.queue
