"""Launching a kernel before its predecessor has ended: programmatic dependent launch, sm_90 and up.

A kernel that is launched so waits before it touches anything that those before wrote or still read.
It waits on every path: the kernel behind it knows by its end that those before it have ended too.
Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

import triton
import triton.language as tl


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Until what the kernels before wrote is there, and none of them reads any more."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def allow_next(PDL: tl.constexpr):
    """Lets the next kernel be launched; it waits by itself."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
