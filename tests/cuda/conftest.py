"""What tests of CUDA C kernels share."""

import pytest

from tests.cuda.build import find_compiler
from tests.cuda.emulator import Emulator, EveryOrder


@pytest.fixture
def emulator() -> Emulator:
    """Runs launches once, threads in ascending order."""
    _need_compiler()
    return Emulator()


@pytest.fixture
def every_order() -> EveryOrder:
    """Runs launches in several orders, which must agree to the bit."""
    _need_compiler()
    return EveryOrder()


def _need_compiler() -> None:
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler for Linux (CXX, g++, clang++, c++)")
