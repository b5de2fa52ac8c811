"""`llama2gpu bench`: whole models and single ops measured, and runs compared."""

import click

from llama2gpu.cli.main import LazyCommand

#: Name of a subcommand → the module whose `command` it is, and the first line of its help.
COMMANDS = {
    "decode": ("llama2gpu.cli.bench_decode", "Measure how fast a model generates."),
    "prefill": ("llama2gpu.cli.bench_prefill", "Measure how fast a model takes a prompt."),
    "load": ("llama2gpu.cli.bench_load", "Measure how fast a checkpoint is loaded."),
    "kernels": (
        "llama2gpu.cli.bench_kernels",
        "Time the ops of each backend beside PyTorch's own and the device's roofs.",
    ),
    "compare": (
        "llama2gpu.cli.bench_compare",
        "Compare two runs; exit with status 1 where one became slower.",
    ),
}


class Ordered(click.Group):
    """A group whose commands are listed in the order of the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in that order."""
        return list(self.commands)


@click.group(
    cls=Ordered,
    commands={name: LazyCommand(name, *entry) for name, entry in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
def command() -> None:
    """Measure whole models and single ops, and compare runs."""
