"""A driver of a GPU that is not there: kernels compile for it and are never launched."""

from typing import Any

from triton.backends.compiler import GPUTarget


class _Utils:
    def __init__(self, shared: int) -> None:
        self.shared = shared

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared}

    def load_binary(self, *args: Any) -> tuple[int | None, ...]:
        return None, 1, 32, 0, 1024  # module, function, registers, spills, threads at most


class FakeDriver:
    """shared: bytes of shared memory that a block may have. device: its number."""

    def __init__(self, target: GPUTarget, shared: int, device: int = 0) -> None:
        self.target, self.utils, self.device = target, _Utils(shared), device

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *args: None

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0
