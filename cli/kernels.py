"""`llama2gpu kernels`: the kernels, listed, taken apart, compared, compiled, tuned, chosen."""

import click

from llama2gpu.cli.kernels_choose import choose_command
from llama2gpu.cli.kernels_diff import diff_command
from llama2gpu.cli.kernels_inspect import inspect_command, list_command
from llama2gpu.cli.kernels_tune import tune_command
from llama2gpu.cli.kernels_warmup import warmup_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List the GPU kernels, take them apart, compare, compile them ahead, tune or choose.

    The first three and the last need no GPU.
    """


for part in (
    list_command, inspect_command, diff_command, warmup_command, tune_command, choose_command,
):  # fmt: skip
    command.add_command(part)
