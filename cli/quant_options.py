"""Options that say how weights are quantized."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llama2gpu.quant import QuantSpec

#: The methods of `quant.spec`, whose import would take a second.
METHODS = {
    "rtn": "round to nearest, clipped for the least error",
    "hqq": "half-quadratic",
    "gptq": "errors fed forward; needs --calibrate",
    "awq": "columns scaled by their inputs; needs --calibrate",
}


def quantization(default: str) -> Callable[[Any], Any]:
    """All options that end up in a `QuantSpec`."""
    methods = "; ".join(f"{name}: {text}" for name, text in METHODS.items())
    made = [
        click.option(
            "--quant",
            type=click.Choice(["none", "int8", "int4"]),
            default=default,
            show_default=True,
            help="Quantize the weights.",
        ),
        click.option(
            "--quant-group",
            type=click.Choice(["32", "64", "128", "row"]),
            help="Columns that share a scale.  [default: 128; for int8 the whole row]",
        ),
        click.option(
            "--quant-method",
            type=click.Choice(list(METHODS)),
            help=f"How int4 is made. {methods}.  [default: rtn]",
        ),
        click.option("--quant-zeros", is_flag=True, help="int4 with a zero point for each group."),
        click.option(
            "--quant-head", is_flag=True, help="The output matrix too, and a tied embedding."
        ),
        click.option(
            "--calibrate",
            "calibration",
            metavar="TEXT",
            type=click.Path(path_type=Path),
            help="Text like what the model will read, for gptq and awq.",
        ),
    ]

    def decorate(function: Any) -> Any:
        for option in reversed(made):
            function = option(function)
        return function

    return decorate


def quant_spec(values: dict[str, Any]) -> "QuantSpec | None":
    """What the options of `quantization` say; None for none. Raises what does not go together."""
    from llama2gpu.quant.spec import CALIBRATED, QuantSpec, default_group

    kind, group, method = values["quant"], values["quant_group"], values["quant_method"] or "rtn"
    if kind == "none":
        for name in ("quant_group", "quant_method", "quant_zeros", "quant_head", "calibration"):
            if values[name]:
                flag = {"calibration": "calibrate"}.get(name, name).replace("_", "-")
                raise click.UsageError(f"--{flag} needs --quant int8 or int4.")
        return None
    if (method in CALIBRATED) != (values["calibration"] is not None):
        raise click.UsageError(
            f"--quant-method {method} needs --calibrate TEXT."
            if method in CALIBRATED
            else f"--calibrate is for --quant-method {' or '.join(CALIBRATED)}."
        )
    if kind == "int4" and group == "row":
        raise click.UsageError("--quant-group row is for --quant int8.")
    columns = default_group(kind) if group is None else None if group == "row" else int(group)
    return QuantSpec(kind, columns, method, values["quant_zeros"], values["quant_head"])
