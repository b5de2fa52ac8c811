import socket
from importlib import util
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from llama2gpu.cli import main as cli
from llama2gpu.cli import serve


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    result = CliRunner().invoke(cli.program, ["serve"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "llama2gpu: error: serve needs uvicorn: pip install 'llama2gpu[serve]'\n"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["--port", "0"],
        ["--port", "70000"],
        ["--pods", "2", "--max-batch", "2"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--grace", "nan"],
        ["--temp", "nan"],
        ["--api-key", ""],
        ["--api-key", "secret "],
        ["--api-key", "sec\nret"],
        ["--api-key", "secret\udcff"],
        ["--cors", "example.org"],
        ["--cors", "https://example.org/page"],
        ["--cors", "https://*.example.org"],
        ["--cors", "null"],
        ["--cors", "*"],
    ],
)
def test_wrong_usage(args: list[str]) -> None:
    result = CliRunner().invoke(cli.program, ["serve", *args])
    assert result.exit_code == 2
    assert args[0] in result.stderr
    assert "secret" not in result.stderr


def test_an_empty_key_in_the_environment_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2GPU_API_KEY", "")
    result = CliRunner().invoke(cli.program, ["serve"])
    assert result.exit_code == 2
    assert "LLAMA2GPU_API_KEY" in result.stderr


def test_origins_are_what_browsers_send() -> None:
    context, param = click.Context(serve.command), click.Option(["--cors"])
    asked = ("https://Example.org/", "http://[::1]:3000", "*")
    found = ("https://example.org", "http://[::1]:3000", "*")
    assert serve.read_origins(context, param, asked) == found


def test_no_home_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama2gpu.server.job_store import JobsError

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-that-name").expanduser())
    with pytest.raises(JobsError, match="--jobs"):
        serve._jobs_file(8080)


@pytest.mark.parametrize(
    ("model", "name"), [(None, "stories"), ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf")]
)
def test_name_of_a_model(model: str | None, name: str) -> None:
    assert serve._name(model) == name


def test_name_of_a_folder(tmp_path: Path) -> None:
    assert serve._name(str(tmp_path)) == tmp_path.name


@pytest.mark.skipif(
    any(util.find_spec(name) is None for name in serve.NEEDED), reason="needs llama2gpu[serve]"
)
@pytest.mark.parametrize("taken", ["port", "jobs"])
def test_what_is_taken_is_one_line(tmp_path: Path, taken: str) -> None:
    jobs = tmp_path / "jobs.sqlite"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if taken == "port":
            other.listen()
        else:
            jobs.write_text("no database at all")
            other.close()
        args = ["serve", "--port", str(port), "--jobs", str(jobs)]
        result = CliRunner().invoke(cli.program, args, standalone_mode=True)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("llama2gpu: error: ")
    assert ("--port" if taken == "port" else "--jobs") in line


def test_command_is_lazy() -> None:
    assert isinstance(cli.program.commands["serve"], click.Command)
    assert type(cli.program.commands["serve"]) is cli.LazyCommand
