"""`llama2gpu doctor`: what runs here, what does not, and what would mend it."""

import json
import platform
from importlib import metadata
from typing import Any

import click

from llama2gpu.cli import explain, options

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "click",
    "rich",
)


@click.command()
@options.backend
@options.device
@options.op
@options.as_json
def command(backend: str, device: str, op: list[tuple[str, str]], as_json: bool) -> None:
    """Say what can run on this machine, and what can't and why.

    The options choose as those of `run` do; the last table shows who would then serve each op.
    """
    from llama2gpu.backends import choose_backend

    report: dict[str, Any] = {"packages": _packages(), "machine": _machine(), "backends": []}
    try:
        report["backends"] = _backends(device)
        report["row_kernels"] = _row_kernels()
        report |= explain.report(choose_backend(backend, device, dict(op)), backend)
    finally:  # what is known helps to mend what is not
        if as_json:
            click.echo(json.dumps(report))
        else:
            _show(report)


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def _backends(device: str) -> list[dict[str, Any]]:
    from llama2gpu.backends import available, probe, resolve_device

    place = resolve_device(device)
    found = {name: probe(name, place) for name in available()}
    return [{"name": name, "runs": ok, "detail": detail} for name, (ok, detail) in found.items()]


def _row_kernels() -> dict[str, Any]:
    """What the torch backend has beside PyTorch on a CPU; asking may compile it."""
    from llama2gpu.backends.cpu_rows import probe_rows

    ok, detail = probe_rows()
    return {"name": "C rows", "runs": ok, "detail": f"few tokens on a CPU, within torch: {detail}"}


def _show(report: dict[str, Any]) -> None:
    machine = report["machine"]
    accelerators = [*machine["cuda"], *(["Apple MPS"] if machine["mps"] else [])]
    click.echo(f"machine   {machine['system']}, CPU with {machine['cpu']}")
    click.echo(f"          {', '.join(accelerators) or 'no GPU that PyTorch can use'}")
    versions = [f"{name} {version or '(absent)'}" for name, version in report["packages"].items()]
    for i in range(0, len(versions), 5):
        click.echo(f"{'packages' if i == 0 else '':10}{', '.join(versions[i : i + 5])}")
    click.echo()
    for row in [*report["backends"], *([rows] if (rows := report.get("row_kernels")) else [])]:
        mark = click.style("runs", fg="green") if row["runs"] else click.style("no  ", fg="red")
        click.echo(f"{row['name']:<10}{mark}  {row['detail']}")
    if "chosen" in report:
        click.echo("\n" + "\n".join(explain.lines(report)))
