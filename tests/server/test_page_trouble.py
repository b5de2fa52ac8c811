"""The page where things go wrong, or are more than it would like."""

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.browsing import answering, last_note, refusing, send, settings

if TYPE_CHECKING:
    from tests.server.running import Server


def test_what_is_asked_and_told_is_in_sight(page: Any) -> None:
    answering(page, "line\n\n" * 60)
    send(page, "Hello")
    last_note(page, "1 token")
    page.evaluate("document.querySelector('#scroll').scrollTop = 0")
    refusing(page, 429, "the queue is full")
    send(page, "And now?")
    page.wait_for_selector("li.wrong")
    assert page.evaluate(
        "document.querySelector('li.wrong').getBoundingClientRect().bottom <= innerHeight"
    )


def test_a_reader_who_scrolled_up_stays_there(page: Any, slow: "Server") -> None:
    page.goto(slow.url)
    page.set_viewport_size({"width": 360, "height": 300})
    settings(page, temperature="0", max_tokens="300")
    send(page, "Once upon a time")
    for _ in range(3000):
        if page.evaluate("document.querySelector('#scroll').scrollHeight") >= 450:
            break
        page.wait_for_timeout(20)
    page.evaluate("document.querySelector('#scroll').scrollTop = 60")
    assert page.query_selector("li.busy")
    last_note(page, "tokens")
    assert page.evaluate("document.querySelector('#scroll').scrollTop") == 60


def test_a_new_conversation_gets_no_answer_of_the_old(page: Any, slow: "Server") -> None:
    page.goto(slow.url)
    settings(page, temperature="0", max_tokens="300")
    send(page, "Once upon a time")
    page.wait_for_selector("li.busy .body p")
    page.keyboard.press("Alt+n")
    page.wait_for_selector("#send", state="visible")
    assert page.query_selector("li") is None
    page.reload()
    assert page.query_selector("li") is None
    assert page.complaints == []


def test_a_wrong_key_asks_for_another(page: Any) -> None:
    refusing(page, 401, "no such API key")
    send(page, "Hello")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("document.activeElement.name") == "key"
    asked = answering(page, "Yes")
    page.keyboard.type("ключ")
    page.keyboard.press("Enter")
    page.click("li.wrong .again")
    last_note(page, "1 token")
    key = "Bearer ключ"  # which the browser's interface shows as text or as bytes
    assert asked[0].headers["authorization"] in (key, key.encode().decode("latin-1"))
    assert [item.inner_text() for item in page.query_selector_all(".body")] == ["Hello", "Yes"]


def test_escape_leaves_the_settings_as_they_were(page: Any) -> None:
    asked = answering(page, "Yes")
    page.keyboard.press("Alt+s")
    page.fill("[name=temperature]", "99")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    send(page, "Hello")
    last_note(page, "1 token")
    assert json.loads(asked[0].post_data)["temperature"] == 0.8


def test_a_server_that_ends(page: Any) -> None:
    body = 'data: {"choices": [{"delta": {"content": "Once"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    send(page, "Hello")
    assert last_note(page, "broke off") == "the answer broke off"
    page.route("**/v1/chat/completions", lambda route: route.abort())
    send(page, "Hello?")
    page.wait_for_selector("li.wrong.unanswered")
    assert "is it still running" in page.inner_text("li.wrong.unanswered .body")


def test_a_conversation_that_outgrows_the_context(page: Any) -> None:
    settings(page, temperature="0", max_tokens="300")
    starts = ("Once upon a time", "One day, Tim", "Sue had a cat", "Then")
    for n, start in enumerate(starts, 1):
        send(page, start)
        page.wait_for_selector(f"li:nth-child({2 * n}) .note:has-text('token')", timeout=60_000)
    assert "the oldest turns no longer fit" in last_note(page, "left out")
    assert page.locator("li").count() == 8  # all of it stays in sight
    send(page, "word " * 2000)
    page.wait_for_selector("li.wrong.unanswered")


def test_tabs_keep_conversations_of_their_own(page: Any) -> None:
    answering(page, "Yes")
    send(page, "First")
    last_note(page, "1 token")
    other = page.context.new_page()
    other.goto(page.url)
    assert other.inner_text("li.user .body") == "First"
    other.keyboard.press("Alt+n")
    answering(other, "No")
    send(other, "Second")
    last_note(other, "1 token")
    page.reload()
    assert page.inner_text("li.user .body") == "First"
    other.evaluate("localStorage.setItem('llama2gpu.messages', '{\"a\": [1]}')")
    other.evaluate("sessionStorage.clear()")
    other.reload()
    other.wait_for_selector("#model:not(:empty)")  # what was kept is no conversation


@pytest.mark.parametrize(
    "text",
    [
        ">" * 20_000,
        "".join("`" * n + " " for n in range(1, 400)),
        "**a " * 20_000,
        "[a](http://" * 10_000,
        "a\n" * 150_000,
    ],
    ids=lambda text: text[:4],
)
def test_no_answer_is_too_much(page: Any, text: str) -> None:
    """Each would take minutes or all of the stack if it were read as it might be."""
    answering(page, text)
    send(page, "Hello")
    last_note(page, "1 token")
    page.reload()
    assert page.inner_text("li.user .body") == "Hello"
    assert page.complaints == []


def test_copying_where_there_is_no_clipboard(page: Any) -> None:
    answering(page, "a **b**")
    send(page, "Hello")
    last_note(page, "1 token")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.click("button.copy")
    page.wait_for_selector("button.copy:has-text('Copied')")
    page.focus("#text")
    page.keyboard.press("Control+v")
    assert page.input_value("#text") == "a **b**"
