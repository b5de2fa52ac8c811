"""Conversations as they grow, are cut, and lie in files."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama2gpu.chat.history import History, read_history
from llama2gpu.errors import RequestError
from tests.chat.models import assistant, system, user


def grown(turns: int, prompt: str | None = "be kind") -> History:
    history = History(prompt)
    for n in range(turns):
        history.ask(f"question {n}")
        history.reply(f"answer {n}")
    return history


def test_messages() -> None:
    history = grown(1)
    history.ask("and?")
    assert history.messages == [
        system("be kind"),
        user("question 0"),
        assistant("answer 0"),
        user("and?"),
    ]
    assert History().messages == []


@pytest.mark.parametrize("most", range(1, 12))
def test_the_oldest_turns_are_dropped(most: int) -> None:
    history = grown(5)
    dropped = history.drop(lambda messages: len(messages) <= most)
    kept = min(max((most - 1) // 2, 1), 5)
    assert dropped == 5 - kept
    assert history.messages[0] == system("be kind")
    assert history.messages[1:] == grown(5, None).messages[-2 * kept :]


def test_round_trip(tmp_path: Path) -> None:
    history = grown(3)
    history.turns[0][0] = user('two\nlines, "quoted", é\U0001f600')
    path = tmp_path / "talk.json"
    history.save(path)
    assert list(json.loads(path.read_text())) == ["messages"]
    assert json.loads(path.read_text())["messages"] == history.messages
    assert read_history(path).messages == history.messages
    grown(1).save(path)  # over its own kind
    assert len(read_history(path).turns) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.json"]
    History().save(path)
    assert read_history(path).messages == []


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\0\1\2")
    with pytest.raises(RequestError, match="holds no conversation: give another name"):
        grown(1).save(path)
    assert path.read_bytes() == b"\0\1\2"
    with pytest.raises(RequestError, match=r"can't write .*: No such file"):
        grown(1).save(tmp_path / "nowhere" / "talk.json")
    with pytest.raises(RequestError, match="give another name"):
        grown(1).save(tmp_path)
    for name in ("a\0b", "a" * 300):
        with pytest.raises(RequestError, match=r"can't write .*write elsewhere"):
            grown(1).save(tmp_path / name)


def test_what_could_not_be_decoded_is_saved_readable(tmp_path: Path) -> None:
    history = grown(1, "be \udcff")
    history.save(tmp_path / "talk.json")
    assert read_history(tmp_path / "talk.json").system == "be \ufffd"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "holds no conversation"),
        (b"{", "holds no conversation"),
        (b"[]", "it has no messages"),
        (b"3", "it has no messages"),
        (b"{}", "it has no messages"),
        (b"\xff\xfe\x00", "holds no conversation"),
        (b"[" * 100000, "holds no conversation"),
        ({"messages": "hi"}, "no messages"),
        ({"messages": {"role": "user"}}, "no messages"),
        ({"messages": [3]}, "message 1 is no object"),
        ({"messages": [{"role": "king", "content": "x"}]}, "message 1 has the role 'king'"),
        ({"messages": [{"role": "user", "content": 3}]}, "no text"),
        ({"messages": [user("a"), {"role": "assistant", "tool_calls": []}]}, "take turns"),
        ({"messages": [assistant("a")]}, "take turns"),
        ({"messages": [user("a"), user("b")]}, "take turns"),
        ({"messages": [user("a"), assistant("b"), system("c")]}, "take turns"),
        ({"messages": [user("a")]}, "last message has no answer"),
    ],
)
def test_files_that_are_none(content: Any, match: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(RequestError, match=match) as error:
        read_history(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(RequestError, match="can't read"):
            read_history(path)
