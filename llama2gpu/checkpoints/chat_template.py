"""The chat template that goes with a checkpoint, as text; it is never run here."""

from llama2gpu.checkpoints.base import Checkpoint
from llama2gpu.checkpoints.fields import read_json
from llama2gpu.checkpoints.files import present, read_start
from llama2gpu.errors import CheckpointError

_LIMIT = 1 << 20


def chat_template_of(checkpoint: Checkpoint) -> str | None:
    """The template within a checkpoint, or in the files of its folder; None where there is none.

    Of several named ones it is "default". Raises `CheckpointError` where a file is damaged.
    """
    if checkpoint.chat_template is not None or not checkpoint.path.is_dir():
        return checkpoint.chat_template
    for path in present(checkpoint.path, "chat_template.jinja"):
        data = read_start(path, _LIMIT + 1)
        if len(data) > _LIMIT:
            raise CheckpointError(f"{path} is larger than {_LIMIT} bytes: it is no chat template")
        return data.decode(errors="replace")
    for path in present(checkpoint.path, "chat_template.json", "tokenizer_config.json"):
        found = read_json(path).get("chat_template")
        if isinstance(found, list):
            named = [one for one in found if isinstance(one, dict)]
            found = next((t.get("template") for t in named if t.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None
