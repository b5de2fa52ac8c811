"""A reader of the page."""

import json
from typing import Any


def send(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def last_note(page: Any, word: str) -> str:
    """What is told below the last answer, once it has that word."""
    page.wait_for_selector(f"li.assistant:last-child .note:has-text('{word}')", timeout=60_000)
    return str(page.inner_text("li.assistant:last-child .note"))


def settings(page: Any, **values: str) -> None:
    page.keyboard.press("Alt+s")
    page.wait_for_selector("dialog[open]")
    for name, value in values.items():
        page.fill(f"[name={name}]", value)
    page.click("dialog button")
    page.wait_for_selector("dialog[open]", state="detached")


def answering(page: Any, *pieces: str) -> list[Any]:
    """Answers of our own instead of the server's; what was asked is returned."""
    asked: list[Any] = []
    events: list[Any] = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    events += [{"choices": [], "usage": {"completion_tokens": len(pieces)}}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    def answer(route: Any) -> None:
        asked.append(route.request)
        route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})

    page.route("**/v1/chat/completions", answer)
    return asked


def refusing(page: Any, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message}})
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body))
