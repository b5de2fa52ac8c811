import errno
import logging
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from llama2gpu.cli import bench, options
from llama2gpu.cli import main as cli
from llama2gpu.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
COMMAND_FILES = sorted(
    path.stem for path in (ROOT / "cli").glob("*.py") if "\ndef command(" in path.read_text()
)
#: The words that call a command → the module whose `command` it is, and its summary.
TABLE = cli.COMMANDS | {f"bench {name}": entry for name, entry in bench.COMMANDS.items()}
PRINTS = "def act(): print('x' * 100)"
FLUSHES = "def act(): print('x' * 100_000, flush=True)"
HELPS = "import sys\nsys.argv[1:] = ['--help']\ndef act(): pass"


def program(act: Callable[[], object]) -> cli.Program:
    return cli.Program("llama2gpu", commands={"act": click.Command("act", callback=act)})


def script(act: str) -> list[str]:
    """A process that runs `act` as the only command of a program."""
    run = "import click; from llama2gpu.cli.main import Program"
    end = "Program('p', commands={'act': click.Command('act', callback=act)}).main()"
    return [sys.executable, "-c", f"{run}\n{act}\n{end}", "act"]


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_what_is_logged_is_told_once() -> None:
    logger = logging.getLogger("llama2gpu")

    def act() -> None:
        for line in ("one", "two", "one"):
            logger.warning("%s line", line)
        logging.getLogger("llama2gpu.part").warning("another")

    result = CliRunner().invoke(program(act), ["act"])
    assert (result.stdout, result.stderr) == ("", "one line\ntwo line\nanother\n")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


def test_quiet_lasts_as_long_as_the_command() -> None:
    levels = []

    @click.command()
    @options.quiet
    def command(quiet: bool) -> None:
        levels.append(logging.getLogger("llama2gpu").level)

    for words in (["--quiet"], []):
        assert CliRunner().invoke(command, words).exit_code == 0
    assert levels == [logging.ERROR, logging.NOTSET]


def test_help_lists_commands_in_order() -> None:
    result = CliRunner().invoke(cli.program, ["--help"])
    lines = result.output.partition("Commands:\n")[2].splitlines()
    assert result.exit_code == 0
    assert [line.split()[0] for line in lines] == list(cli.COMMANDS)


def test_table_matches_files() -> None:
    modules = sorted(module for module, _ in TABLE.values())
    assert modules == [f"llama2gpu.cli.{name}" for name in COMMAND_FILES]


@pytest.mark.parametrize("name", TABLE)
def test_summary_opens_the_help(name: str) -> None:
    module, summary = TABLE[name]
    help = import_module(module).command.help
    assert help.splitlines()[0] == summary
    result = CliRunner().invoke(cli.program, [*name.split(), "--help"], terminal_width=100)
    assert result.output.startswith(f"Usage: llama2gpu {name} ")


@pytest.mark.parametrize("name", TABLE)
def test_help_imports_light(name: str) -> None:
    code = (
        "import atexit, sys\n"
        "from llama2gpu.cli.main import main\n"
        "atexit.register(lambda: print(*sys.modules))\n"
        f"sys.argv[1:] = '{name} --help'.split()\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "triton", "numpy", "huggingface_hub"} & set(done.stdout.split())


def test_version_of_a_checkout() -> None:
    assert CliRunner().invoke(cli.program, ["--version"]).output == f"llama2gpu {VERSION}\n"


def test_version_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "llama2gpu" / "cli" / "main.py"))
    monkeypatch.setattr(metadata, "version", {"llama2gpu": "9.8.7"}.__getitem__)
    assert cli.version() == "9.8.7"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CheckpointError("no such file: give another\nname"), "no such file: give another name"),
        (OSError(errno.EACCES, "Permission denied", "a.bin"), "a.bin: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
        (MemoryError(), "out of memory: close other programs, or take a smaller model or context"),
    ],
)
def test_error_is_one_line(error: Exception, message: str) -> None:
    result = CliRunner().invoke(program(fail(error)), ["act"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"llama2gpu: error: {message}\n"


@pytest.mark.parametrize("args", [["nope"], ["--nope"], ["act", "more"]])
def test_wrong_usage(args: list[str]) -> None:
    result = CliRunner().invoke(program(lambda: None), args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: llama2gpu ")


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (lambda: None, 0),
        (lambda: click.get_current_context().exit(3), 3),
        (fail(KeyboardInterrupt()), 130),
        (fail(click.Abort()), 130),
        (fail(BrokenPipeError(errno.EPIPE, "Broken pipe")), 1),
    ],
)
def test_quiet_ends(act: Callable[[], object], status: int) -> None:
    result = CliRunner().invoke(program(act), ["act"])
    assert (result.exit_code, result.output.strip()) == (status, "")


def test_bug_keeps_its_traceback() -> None:
    result = CliRunner().invoke(program(fail(ZeroDivisionError("bug"))), ["act"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_output_beyond_the_encoding_is_escaped() -> None:
    result = CliRunner(charset="latin-1").invoke(program(lambda: click.echo("é▁x")), ["act"])
    assert result.stdout == "é\\u2581x\n"


@pytest.mark.parametrize("args", [["--help"], ["inspect", "--help"]])
def test_runs_as_a_module(args: list[str]) -> None:
    command = [sys.executable, "-m", "llama2gpu", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" ".join(["Usage: llama2gpu", *args[:-1]]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("act", [PRINTS, FLUSHES, HELPS], ids=["print", "flush", "help"])
def test_full_disk_is_one_line(act: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(script(act), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "llama2gpu: error: No space left on device\n"


@pytest.mark.parametrize("act", [PRINTS, FLUSHES, HELPS], ids=["print", "flush", "help"])
def test_closed_pipe_is_quiet(act: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(script(act), cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_interrupt_has_no_traceback() -> None:
    act = "import signal\ndef act():\n    print('ready', flush=True)\n    signal.pause()"
    with subprocess.Popen(
        script(act), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint.strip()) == (130, "")
