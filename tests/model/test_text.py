"""What may be shown of an answer while it is made."""

from hypothesis import given
from hypothesis import strategies as st

from llama2gpu.text import TextStream


class Letters:
    """A decoder whose tokens are code points; it keeps one back, as one with bytes would."""

    def __init__(self) -> None:
        self.kept = ""

    def push(self, token: int, /) -> str:
        out, self.kept = self.kept, chr(token)
        return out

    def flush(self) -> str:
        out, self.kept = self.kept, ""
        return out


def shown(text: str, stop: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(Letters(), stop)
    pieces = []
    for letter in text:
        pieces.append(stream.push(ord(letter)))
        if stream.stopped:
            return pieces, stream
    return [*pieces, stream.flush()], stream


@given(st.text("ab\n", max_size=20), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stream = shown(text, stop)
    ends = [at for at in map(text.find, stop) if at >= 0]
    assert stream.stopped == bool(ends)
    assert stream.text == "".join(pieces)
    if not ends:
        assert stream.text == text
    else:
        assert text.startswith(stream.text)
        assert not any(s in stream.text for s in stop)


def test_releases_what_can_not_be_a_stop_string_any_more() -> None:
    pieces, stream = shown("one\nUser said\nUser: no", ["\nUser:"])
    assert stream.text == "one\nUser said"
    assert "".join(pieces[:5]) == "one"
    assert stream.stopped


def test_stop_string_at_the_very_end() -> None:
    _, stream = shown("abc", ["c"])
    assert (stream.text, stream.stopped) == ("ab", True)
