"""Everything that llama2gpu raises on purpose.

Each message is one line: what is wrong, then what to do about it.
"""


class Llama2GPUError(Exception):
    """Root of the tree; the command line prints it as one line and exits with status 1."""


class CheckpointError(Llama2GPUError):
    """A checkpoint can't be found, read or believed."""


class UnsupportedModelError(CheckpointError):
    """A well-formed checkpoint of a model that this package does not run."""


class TokenizerError(Llama2GPUError):
    """A tokenizer can't be found or read, or does not fit its checkpoint."""


class BackendError(Llama2GPUError):
    """A backend is unknown, or can't run here."""


class RequestError(Llama2GPUError):
    """A request that can't be served: its parameters, its prompt or its length."""


class ContextError(RequestError):
    """A prompt that is too long for the context or the cache."""


class ResultsError(Llama2GPUError):
    """A file of measurements can't be read, or two can't be compared."""
