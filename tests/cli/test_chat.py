"""`llama2gpu chat`, as a user meets it."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llama2gpu.api import DEFAULT_MODEL
from llama2gpu.cli.main import program

GREEDY = ("-t", "0", "--device", "cpu")


def chat(*words: object, typed: str | bytes = "") -> Result:
    return CliRunner().invoke(program, ["chat", *GREEDY, *map(str, words)], input=typed)


def continued(text: str, count: int) -> str:
    """What the model goes on with, by `run`."""
    words = ["run", text, *GREEDY, "-n", str(count), "--no-echo", "--quiet"]
    return CliRunner().invoke(program, words).stdout.removesuffix("\n")


@pytest.fixture
def talker(tmp_path: Path) -> Path:
    """The shipped model with a chat template, as if it had been trained on one."""
    folder = tmp_path / "talker"
    shutil.copytree(DEFAULT_MODEL, folder)
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n"
        "{% else %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def test_a_story_continues() -> None:
    result = chat("-n", 12, typed="Once upon a time\nThen\n")
    first = continued("Once upon a time", 12)
    second = continued(f"Once upon a time{first}\nThen", 12)
    assert (result.exit_code, result.stdout) == (0, f"{first}\n{second}\n")
    assert "chat template plain: " in result.stderr
    assert "seems to be a base model, not trained to talk" in result.stderr


def test_a_base_model_that_is_given_a_template() -> None:
    result = chat("-n", 1, "--chat-template", "vicuna", typed="hi\n")
    assert "it may answer nonsense; --chat-template plain" in result.stderr
    assert "chat template vicuna: it was asked for" in result.stderr


def test_a_chat_model(talker: Path) -> None:
    result = chat("-m", talker, "-n", 4, "--system", "be kind", "--json", typed="Hi </s>\n")
    answer = json.loads(result.stdout)
    from llama2gpu.tokenizer import load_tokenizer

    words = load_tokenizer(talker)
    ids = [*words.encode("be kind\nuser: Hi </s>"), 2]
    assert answer["prompt_tokens"] == len(ids)
    assert (len(answer["tokens"]), answer["stop_reason"]) == (4, "length")
    assert "base model" not in result.stderr
    assert "chat template default: the checkpoint brings it" in result.stderr


def test_run_warns_of_a_chat_model(talker: Path) -> None:
    def run(*words: object) -> Result:
        return CliRunner().invoke(program, ["run", "hi", "-n", "1", *GREEDY, *map(str, words)])

    told = "'talker' has a chat template, and run gives it the bare prompt; `llama2gpu chat` talks"
    assert told in run("-m", talker).stderr
    assert "chat template" not in run().stderr
    assert run("-m", talker, "--quiet").stderr == ""
    (talker / "tokenizer_config.json").write_text('{"chat_template": 5}')
    assert run("-m", talker).exit_code == 0
    (talker / "tokenizer_config.json").write_text(
        "{"
    )  # it also says whether a text begins with BOS
    damaged = run("-m", talker)
    assert (damaged.exit_code, damaged.stdout) == (1, "")
    assert "tokenizer_config.json" in damaged.stderr.splitlines()[-1]


def test_json_lines() -> None:
    result = chat("-n", 3, "--json", "--logprobs", 1, typed="One day\nthen\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [len(answer["tokens"]) for answer in answers] == [3, 3]
    assert [len(answer["logprobs"]) for answer in answers] == [3, 3]
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"]


def sent(*words: object, typed: str) -> list[dict[str, Any]]:
    """The conversation after what was typed."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        assert chat("-n", 2, *words, typed=f"{typed}\n/save {path}\n").exit_code == 0
        messages: list[dict[str, Any]] = json.loads(path.read_text())["messages"]
        return messages


def users(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a\nb", ["a", "b"]),
        ("a\\\nb\\\nc\nd", ["a\nb\nc", "d"]),
        ('"""a\n\nb"""\nc', ["a\n\nb", "c"]),
        ('  """\na\n/reset\n"""', ["\na\n/reset\n"]),
        ('"""a"""', ["a"]),
        ("\n  \na\r\n", ["a"]),
        ("//etc", ["/etc"]),
        ("a\n/undo\nb", ["b"]),
        ("/undo\na\n/reset\nb\n/nonsense\nc", ["b", "c"]),
    ],
)
def test_turns(typed: str, expected: list[str]) -> None:
    assert users(sent(typed=typed)) == expected


def test_system_prompts() -> None:
    assert sent("--system", "S", typed="a\n/reset")[0] == {"role": "system", "content": "S"}
    assert sent("--system", "S", typed="/system T U\na")[0]["content"] == "T U"
    assert sent("--system", "S", typed="/system\na")[0]["role"] == "user"


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    straight = chat("-n", 8, typed="One day\nThen\n").stdout.splitlines()
    chat("-n", 8, typed=f"One day\n/save {path}\n")
    resumed = chat("-n", 8, typed=f"/load {path}\nThen\n")
    assert resumed.stdout.splitlines() == straight[1:]
    assert f"(1 turns from {path})" in resumed.stderr


def test_mistakes_in_a_pipe_end_it(tmp_path: Path) -> None:
    result = chat("-n", 2, typed=f"/load {tmp_path}/none.json\nhi\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("llama2gpu: error: can't read ")


def test_help_and_exit() -> None:
    result = chat("-n", 2, typed="/help\n/exit\nhi\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "/system TEXT" in result.stderr
    assert chat("--quiet", typed="/reset\n").stderr == ""


def test_the_oldest_turns_make_room() -> None:
    typed = "".join(f"Once upon a time there was number {n}\n" for n in range(8))
    result = chat("-n", 12, "--ctx", 64, typed=typed)
    assert (result.exit_code, len(result.stdout.splitlines()) >= 8) == (0, True)
    assert "(the context of 64 tokens is full: the oldest turn is left out)" in result.stderr
    result = chat("-n", 2, "--ctx", 8, typed="Once upon a time there was a very little girl\n")
    assert result.exit_code == 1
    assert "the context holds 8" in result.stderr
    result = chat("-n", 2, "--ctx", 32, typed=f"Once upon a time\n{'long ' * 40}\n")
    assert "the context holds 32" in result.stderr
    assert "left out" not in result.stderr  # the conversation is as it was


def test_an_answer_that_fills_the_context() -> None:
    result = chat("-n", -1, "--ctx", 12, "--ignore-eos", typed="Once upon a time\n")
    assert "(the context is full: the answer ends here)" in result.stderr


def test_undecodable_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    result = chat("-n", 2, typed=b"a\xff\xfeb\n/save %s\n" % str(path).encode())
    assert result.exit_code == 0
    assert users(json.loads(path.read_text())["messages"]) == ["a\ufffd\ufffdb"]


@pytest.mark.parametrize("words", [["--logprobs", "3"], ["--nonsense"], ["word"]])
def test_wrong_usage(words: list[str]) -> None:
    assert chat(*words).exit_code == 2


def test_hostile_template(talker: Path) -> None:
    (talker / "chat_template.jinja").write_text("{{ 'a' * 10**10 }}")
    result = chat("-m", talker, typed="hi\n")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("llama2gpu: error: the chat template can't be used: it takes more than")


class Terminal:
    """The program at a terminal of its own; what it shows is in `seen`."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "llama2gpu", "chat", *GREEDY, *words]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_own_terminal
        )
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str) -> str:
        """Reads until something matches, and forgets it and what came before."""
        while (found := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self.master], [], [], 120)
            assert ready, f"{pattern!r} did not come: {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"{pattern!r} did not come: {self.seen!r}") from None
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def press(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self, text: str = "") -> None:
        """Control-C, as late as a person is.

        Python misses a signal that comes after a prompt was shown and before it waits for keys.
        """
        self.press(text)
        select.select([], [], [], 0.5)
        self.press("\x03")


def _own_terminal() -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def talking(*words: str) -> Iterator[Terminal]:
    made = Terminal(*words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with talking("-n", "-1", "--ignore-eos", "--ctx", "4096", "--no-kv-cache") as made:
        yield made


def test_control_c_at_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    """It stops an answer, which stays, and then a line; twice in a row at the prompt, it ends."""
    terminal.until("> ")
    terminal.press("Once upon a time\n")
    terminal.until("there was")
    terminal.interrupt()
    terminal.until("> ")
    terminal.press(f"/save {tmp_path / 'x.json'}\n")
    terminal.until(r"\(saved in [^)]*\)\r\n")
    answer = json.loads((tmp_path / "x.json").read_text())["messages"][1]
    assert "there was" in answer["content"]
    terminal.until("> ")
    terminal.interrupt("half a li")
    terminal.until("Control-C again")
    terminal.until("> ")
    terminal.press("/load /nowhere\n")
    terminal.until("error: can't read /nowhere")
    terminal.until("> ")
    terminal.interrupt()
    terminal.until("Control-C again")
    terminal.until("> ")
    terminal.interrupt()
    assert terminal.process.wait(120) == 130
    assert "Traceback" not in terminal.seen


def test_no_model_drives_a_terminal() -> None:
    escape = 27 + 3  # the token of that byte
    words = ["-n", "2", "--ignore-eos", "--logit-bias", f"{escape}=100"]
    with talking(*words, "--quiet") as terminal:
        terminal.until("> ")
        terminal.press("hi\n")
        shown = terminal.until(r"x1b\r\n")
        assert "\x1b" not in shown.partition("\r\n")[2]
        terminal.until("> ")
        terminal.press("\x04")
        assert terminal.process.wait(120) == 0
    assert chat(*words, typed="hi\n").stdout == "\x1b\x1b\n"


def test_control_d_at_a_terminal(terminal: Terminal) -> None:
    terminal.until("> ")
    terminal.press("\x04")
    assert terminal.process.wait(120) == 0
