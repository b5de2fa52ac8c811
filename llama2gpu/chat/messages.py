"""The messages of a conversation, as OpenAI's API has them, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama2gpu.chat.guard import plain
from llama2gpu.errors import RequestError

Message = Mapping[str, Any]

#: A template may build control tokens of a role, so no other word is one.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of the messages as a template takes them.

    Each has a role of `ROLES` and a content: text, or OpenAI's list of parts, of which all must be
    text and are joined. Fields of None are left out, and content may be missing only beside
    "tool_calls". Raises `RequestError` that names the message at fault.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError("the conversation has no messages: give at least one")
    return [_check(n, message) for n, message in enumerate(messages, 1)]


def _check(n: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"message {n} is no object: give a role and a content")
    found: dict[str, Any] = plain({k: v for k, v in message.items() if v is not None})
    if found.get("role") not in ROLES:
        raise RequestError(
            f"message {n} has the role {found.get('role')!r:.60}: choose {', '.join(ROLES)}"
        )
    if "content" in found:
        found["content"] = _text(n, found["content"])
    elif "tool_calls" not in found:
        raise RequestError(f"message {n} has no content: give its text")
    return found


def _text(n: int, content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if len(texts) < len(parts) or kinds - {"text"} or not all(isinstance(t, str) for t in texts):
        raise RequestError(f"message {n} has a content that is no text: give text alone")
    return "".join(map(str, texts))
