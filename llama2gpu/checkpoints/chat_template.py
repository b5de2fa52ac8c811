"""The chat template that goes with a checkpoint, as text; it is never run here."""

from pathlib import Path

from llama2gpu.checkpoints.base import Checkpoint
from llama2gpu.checkpoints.fields import read_json
from llama2gpu.checkpoints.files import present, read_start
from llama2gpu.errors import CheckpointError

_LIMIT = 1 << 20


def chat_template_of(checkpoint: Checkpoint) -> str | None:
    """The template within a checkpoint, or in the files of its folder; None where there is none.

    Of several named ones it is "default". Raises `CheckpointError` where a file is damaged.
    """
    return chat_templates_of(checkpoint).get("default")


def chat_templates_of(checkpoint: Checkpoint) -> dict[str, str]:
    """All its templates by name: a single one is "default". Raises what `chat_template_of` does."""
    if checkpoint.chat_template is not None:
        return {"default": checkpoint.chat_template}
    if not checkpoint.path.is_dir():
        return {}
    for path in present(checkpoint.path, "chat_template.jinja"):
        return {"default": read_template(path)}
    for path in present(checkpoint.path, "chat_template.json", "tokenizer_config.json"):
        found = read_json(path).get("chat_template")
        if isinstance(found, str):
            return {"default": found}
        if isinstance(found, list):
            named = [(t.get("name"), t.get("template")) for t in found if isinstance(t, dict)]
            texts = {n: t for n, t in named if isinstance(n, str) and isinstance(t, str)}
            if texts:
                return texts
    return {}


def read_template(path: Path) -> str:
    """The template in a file of its own; `CheckpointError` where it can't be one."""
    data = read_start(path, _LIMIT + 1)
    if len(data) > _LIMIT:
        raise CheckpointError(f"{path} is larger than {_LIMIT} bytes: it is no chat template")
    return data.decode(errors="replace")
