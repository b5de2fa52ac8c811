"""`llama2gpu kernels`: the GPU kernels: listed, taken apart, compared, compiled ahead, tuned."""

import click

from llama2gpu.cli.kernels_diff import diff_command
from llama2gpu.cli.kernels_inspect import inspect_command, list_command
from llama2gpu.cli.kernels_tune import tune_command
from llama2gpu.cli.kernels_warmup import warmup_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List the GPU kernels, take them apart, compare, compile them ahead or tune them.

    The first three need no GPU.
    """


for part in (list_command, inspect_command, diff_command, warmup_command, tune_command):
    command.add_command(part)
