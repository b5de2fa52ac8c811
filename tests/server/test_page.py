"""The page in a browser: sending, streaming, stopping, settings, hostile answers."""

import json
from typing import TYPE_CHECKING, Any

from tests.server.browsing import answering, last_note, refusing, send, settings

if TYPE_CHECKING:
    from tests.server.running import Server

HOSTILE = (
    "# Title\n<script>window.hacked = 1</script>\n<img src=x onerror='window.hacked = 1'>\n\n"
    "- one\n- **two**\n  - deeper\n\n```\n</code><script>window.hacked = 1</script>\n```\n"
    "[bad](javascript:window.hacked=1) [good](https://example.org)\n"
)


def test_a_story_streams_and_is_measured(page: Any) -> None:
    settings(page, temperature="0", max_tokens="60")
    send(page, "Once upon a time")
    note = last_note(page, "tok/s")
    assert "60 tokens" in note
    assert "cut at the limit" in note
    assert len(page.inner_text("li.assistant .body")) > 100
    assert page.inner_text("#model") == "stories"
    assert page.complaints == []


def test_what_is_sent_is_the_conversation_and_the_settings(page: Any) -> None:
    asked = answering(page, "Yes", ".")
    settings(page, system="Be brief", temperature="0.5", seed="7", key="secret")
    send(page, "First")
    last_note(page, "2 tokens")
    send(page, "Second")
    page.wait_for_selector("li:nth-child(4) .note:has-text('2 tokens')")
    body = json.loads(asked[1].post_data)
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", "Be brief"), ("user", "First"), ("assistant", "Yes."), ("user", "Second"),
    ]  # fmt: skip
    assert (body["temperature"], body["seed"], body["stream"]) == (0.5, 7, True)
    assert asked[1].headers["authorization"] == "Bearer secret"
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_stopping_keeps_what_there_is(page: Any, slow: "Server") -> None:
    page.goto(slow.url)
    settings(page, temperature="0", max_tokens="300")
    send(page, "Once upon a time")
    page.wait_for_selector("li.busy .body p")
    assert page.is_visible("#stop")
    page.keyboard.press("Escape")
    assert last_note(page, "stopped") == "stopped"
    assert page.inner_text("li.assistant .body")
    assert page.is_visible("#send")
    page.reload()
    assert page.inner_text("li.assistant .note") == "stopped"
    page.keyboard.press("Alt+n")
    assert page.query_selector("li") is None


def test_nothing_that_a_model_writes_runs(page: Any) -> None:
    answering(page, *(HOSTILE[i : i + 7] for i in range(0, len(HOSTILE), 7)))
    send(page, HOSTILE)
    last_note(page, "tokens")
    for element in ("script", "img", "iframe", "a[href^=javascript]"):
        assert page.query_selector(f"#messages {element}") is None
    assert page.evaluate("window.hacked") is None
    body = page.query_selector("li.assistant .body")
    assert "<script>window.hacked = 1</script>" in body.inner_text()
    assert [e.inner_text() for e in body.query_selector_all("h2, strong, li li")] == [
        "Title", "two", "deeper",
    ]  # fmt: skip
    assert [a.get_attribute("href") for a in body.query_selector_all("a")] == [
        "https://example.org"
    ]
    assert page.complaints == []


def test_a_refusal_is_told(page: Any) -> None:
    refusing(page, 429, "the queue is full")
    send(page, "Hello")
    page.wait_for_selector("li.wrong")
    assert page.inner_text("li.wrong .body") == "the queue is full"


def test_fits_a_phone_and_the_dark(browser: Any, server: "Server") -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme="dark")
    page = context.new_page()
    page.goto(server.url)
    answering(page, "`" + "x" * 300 + "`", "\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    send(page, "y" * 300)
    last_note(page, "2 tokens")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 64
    context.close()


def test_headers_and_names(server: "Server") -> None:
    for path in ("/", "/index.html", "/app.js", "/style.css", "/icon.svg"):
        found = server.get(path)
        assert found.status_code == 200
        assert "script-src 'self';" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        assert found.headers["x-content-type-options"] == "nosniff"
    for path in ("/../pyproject.toml", "/page.py", "/app.js/x", "/%2e%2e/page.py"):
        assert server.get(path).status_code == 404
