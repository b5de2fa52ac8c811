"""`llama2gpu kernels warmup`: every kernel of a model compiled for the GPU at hand."""

import json
from typing import TYPE_CHECKING, Any

import click

from llama2gpu.cli import options
from llama2gpu.cli.kernels_options import choose_one, gpu, short, split, split_numbers

if TYPE_CHECKING:
    from llama2gpu.config import Config
    from llama2gpu.kernels.launch import Launch
    from llama2gpu.kernels.warm import Warmed
    from llama2gpu.quant import QuantSpec

#: Tokens of a step: the sizes that decode steps are padded to, and a prompt of a multiple of 16 and
#: of another number, which Triton tells apart.
TOKENS = "1,2,3,4,6,8,12,16,24,32,48,64,100,128"


@click.command("warmup")
@click.argument("model", required=False, metavar=f"[{options.MODEL}]")
@click.option("--shape", metavar="NAME", help="Sizes of the model; llama2-7b without a model.")
@click.option(
    "--quant", "quants", default="none,int8,int4", show_default=True, metavar="KINDS",
    callback=split, help="Of its weights: also int4:32, int4+zeros, int4:64+head and such.",
)  # fmt: skip
@click.option(
    "--tokens", default=TOKENS, show_default=True, metavar="NUMBERS", callback=split_numbers,
    help="New tokens: up to 64 of as many sequences and of one prompt, else of a prompt.",
)  # fmt: skip
@options.device
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@options.quiet
def warmup_command(
    model: str | None, shape: str | None, quants: list[str], tokens: list[int], device: str,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Compile all kernels of a model for this GPU, so that no request waits for them.

    They go to Triton's cache on disk, where every later run finds them: in bf16, with both types of
    cache. A checkpoint is read no further than its sizes.
    """
    if model is not None and shape is not None:
        raise click.UsageError("a model and --shape exclude each other.")
    from llama2gpu.errors import BackendError
    from llama2gpu.open_quantizer import read_spec

    specs = [read_spec(quant, None) for quant in quants]
    config = _config(model, shape or "llama2-7b")
    place = gpu(device, "warmed up")
    import torch

    from llama2gpu.kernels.warm import cache_folder, warm

    with torch.cuda.device(place):
        launches = _launches(config, specs, tokens, place)
        done = warm(launches, lambda done, total, last: None if quiet else tell(done, total, last))
    if as_json:
        click.echo(json.dumps([_fields(one) for one in done], indent=2))
    failed = [one for one in done if one.error]
    if failed:
        raise BackendError(
            f"{len(failed)} of {len(done)} kernels do not compile for {place}; "
            f"{short(failed[0].launch.name)}: {failed[0].error}: `--backend torch` does without"
        )
    if not as_json:
        new = sum(not one.cached for one in done)
        click.echo(f"{len(done)} kernels in {cache_folder()}, {new} of them compiled now")


def _config(model: str | None, shape: str) -> "Config":
    if model is None:
        from llama2gpu.measure.shapes import SHAPES

        return SHAPES[choose_one("shape", shape, SHAPES)]
    from llama2gpu.checkpoints import open_checkpoint

    return open_checkpoint(model).config


def _launches(
    config: "Config", specs: list["QuantSpec | None"], tokens: list[int], place: Any
) -> list["Launch"]:
    """What a model's steps launch on a device, planned as its own backend does."""
    import torch

    from llama2gpu.backends import backend_class
    from llama2gpu.measure.warm_model import meta_backend, model_launches

    real: Any = backend_class("triton")(place)
    meta = meta_backend(real.arch, real.multiprocessors, real.tuned)
    return [
        launch
        for spec in specs
        for kv_dtype in (torch.bfloat16, torch.int8)
        for launch in model_launches(config, spec, kv_dtype, tokens, meta)
    ]


def tell(done: int, total: int, last: "Warmed") -> None:
    """A line on stderr about a kernel that is ready."""
    state = f"failed: {last.error}" if last.error else "was there" if last.cached else "compiled"
    name, width = short(last.launch.name), len(str(total))
    click.echo(f"{done:>{width}}/{total}  {name:<16} {detail(last.launch):<44} {state}", err=True)


def detail(launch: "Launch") -> str:
    """Which of a kernel's forms it is, for people."""
    constants, rows = launch.plan.constants, launch.arguments.get("N")
    parts = []
    if "BITS" in constants and "K" in constants:
        parts.append(f"{constants['BITS']} bits, {rows}×{constants['K']}")
    if "BLOCK_M" in constants:
        parts.append(f"blocks of {constants['BLOCK_M']}×{constants.get('BLOCK_N', '?')}")
    if "SPLITS" in constants:
        parts.append(f"{constants['SPLITS']} splits")
    return ", ".join(parts)


def _fields(one: "Warmed") -> dict[str, Any]:
    plan = one.launch.plan
    constants = {name: x for name, x in plan.constants.items() if isinstance(x, int | bool)}
    return {
        "kernel": one.launch.name,
        "constants": constants,
        "num_warps": plan.num_warps,
        "cached": one.cached,
        "error": one.error or None,
    }
