"""Which chat template goes with a checkpoint."""

import re
from pathlib import Path
from typing import NamedTuple

from llama2gpu.chat.builtin import FORMATS
from llama2gpu.checkpoints import Checkpoint
from llama2gpu.checkpoints.chat_template import chat_templates_of, read_template
from llama2gpu.errors import RequestError
from llama2gpu.tokenizer import Tokenizer


class Choice(NamedTuple):
    """A template, by name, why it is this one, and what `Chat` says of it."""

    name: str
    why: str
    template: str
    stops: tuple[str, ...] = ()
    trained: bool = True


#: What a checkpoint's name says of its format, first match first.
_NAMES = (
    ("vicuna", re.compile(r"vicuna", re.I)),
    ("alpaca", re.compile(r"alpaca", re.I)),
    ("mistral", re.compile(r"mi[sx]tral.*instruct", re.I)),
    ("llama2", re.compile(r"llama[-_ ]?2.*chat|code[-_ ]?llama.*instruct", re.I)),
)
_TALKS = re.compile(r"instruct|chat", re.I)
_LLAMA_3, _LLAMA_3_END = "<|start_header_id|>", "<|eot_id|>"


def choose(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str | None) -> Choice:
    """The template called `name`, or the checkpoint's own, or the one that its kind was trained on.

    Without either it is "plain". Raises `RequestError` where there is none of that name.
    """
    if name is not None:
        return _named(checkpoint, tokenizer, name)
    own = chat_templates_of(checkpoint)
    if own.get("default", "").strip():
        return Choice("default", "the checkpoint brings it", own["default"])
    found, why = _kind(checkpoint, tokenizer)
    return Choice(found, why, *FORMATS[found], trained=found != "plain")


def _named(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str) -> Choice:
    own = chat_templates_of(checkpoint)
    asked = "it was asked for"
    trained = bool(own) or _kind(checkpoint, tokenizer)[0] != "plain"
    if name in FORMATS:
        return Choice(name, asked, *FORMATS[name], trained=trained)
    if name in own:
        return Choice(name, asked, own[name])
    path = Path(name)
    if path.is_file():
        return Choice(path.name, asked, read_template(path), trained=trained)
    known = ", ".join(dict.fromkeys([*FORMATS, *own]))
    raise RequestError(f"no chat template {name!r:.100}: choose {known}, or a file of Jinja")


def _kind(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[str, str]:
    """A built-in template, and why it is this one."""
    controls, called = tokenizer.control_names(), _names(checkpoint)
    for name, pattern in _NAMES:
        if pattern.search(called):
            return name, f"the checkpoint's name, {called}, says so"
    if _LLAMA_3 in controls:
        stops = [tokenizer.token(id).text.decode() for id in checkpoint.stop_ids]
        if _LLAMA_3_END in stops or _TALKS.search(called):
            return "llama3", f"its vocabulary has {_LLAMA_3}, and its name or stop tokens say chat"
    if "[INST]" in controls:
        return "mistral", "its vocabulary has [INST]"
    return "plain", "it brings no template, and nothing tells that it was trained on one"


def _names(checkpoint: Checkpoint) -> str:
    """What a checkpoint is called: its folder on the Hub, else its own name and its folder's."""
    path = checkpoint.path.absolute()
    hub = [part for part in path.parts if part.startswith("models--")]
    return hub[-1] if hub else "/".join(path.parts[-2:])
