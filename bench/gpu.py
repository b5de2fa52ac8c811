"""All that a GPU is asked at once: tests, kernels, whole models. `python bench/gpu.py RESULTS`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import torch

from llama2gpu.measure.model_result import ModelResult
from llama2gpu.measure.results import read_results

#: Whole models: shape, then the weights to take it with.
MODELS = {"llama-1.1b": ("none", "int4"), "llama2-7b": ("none", "int8", "int4", "int4+head")}


@click.command()
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option("--skip-tests", is_flag=True, help="Measure at once.")
def main(results: Path, skip_tests: bool) -> None:
    """Write what was found to RESULTS, and a short table to stdout last."""
    if not torch.cuda.is_available():
        raise click.ClickException("PyTorch sees no CUDA or ROCm device here")
    results.mkdir(parents=True, exist_ok=True)
    lines = [torch.cuda.get_device_name(0)]
    if not skip_tests:
        done, seconds = run("tests", results, "pytest", "-q", "tests/kernels", "tests/ops")
        lines.append(f"tests    {'passed' if done else 'FAILED'} in {seconds:.0f} s")
    for shape, quants in MODELS.items():
        for backend in ("triton", "cupy", "torch"):
            for quant in quants:
                lines.append(decode(results, shape, backend, quant))
    click.echo("\n".join(lines))


def run(name: str, results: Path, *command: str) -> tuple[bool, float]:
    """Runs a module of Python with its output in a file; whether it ended well, and how long."""
    began = time.monotonic()
    with (results / f"{name}.log").open("w") as log:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-m", *command], stdout=log, stderr=log, env=environment, check=False
        )
    return done.returncode == 0, time.monotonic() - began


def decode(results: Path, shape: str, backend: str, quant: str) -> str:
    """One line on a whole model."""
    name = f"decode-{shape}-{backend}-{quant}"
    path = results / f"{name}.json"
    options = ["--shape", shape, "--backend", backend, "--quant", quant, "--depth", "128"]
    options += ["--tokens", "128", "--repeats", "3", "--output", str(path)]
    done, seconds = run(name, results, "llama2gpu", "bench", "decode", *options)
    if not done:
        return f"{name:<34} FAILED after {seconds:.0f} s: {results / name}.log"
    (result,) = map(ModelResult.read, read_results(path))
    rate = result.median("decode_rate")
    return f"{name:<34} {rate:8.1f} tok/s {result.read_share:6.0%} of the read peak"


if __name__ == "__main__":
    main()
