"""`llama2gpu kernels`: the GPU kernels, listed, taken apart, compiled ahead and tuned."""

import click

from llama2gpu.cli.kernels_inspect import inspect_command, list_command
from llama2gpu.cli.kernels_tune import tune_command
from llama2gpu.cli.kernels_warmup import warmup_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List the GPU kernels, take them apart, compile them ahead or tune them.

    The first two need no GPU.
    """


for part in (list_command, inspect_command, warmup_command, tune_command):
    command.add_command(part)
