"""`llama2gpu bench`: what runs here, measured."""

import click

from llama2gpu.cli.main import LazyCommand

#: Name of a subcommand → the module whose `command` it is, and the first line of its help.
COMMANDS = {
    "kernels": (
        "llama2gpu.cli.bench_kernels",
        "Time the ops of each backend beside PyTorch's own and the device's roofs.",
    ),
}


@click.group(
    commands={name: LazyCommand(name, *entry) for name, entry in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
def command() -> None:
    """Measure speed on this machine."""
