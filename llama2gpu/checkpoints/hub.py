"""Checkpoints by their name on the Hugging Face Hub, through `huggingface_hub` and its cache."""

import re
from pathlib import Path

from llama2gpu.checkpoints.files import list_folder
from llama2gpu.errors import CheckpointError
from llama2gpu.files import one_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SMALL = ["config.json", "generation_config.json", "tokenizer*", "chat_template*", "params.json"]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "consolidated.*.pth"]
_WEIGHTS = (".safetensors", ".bin", ".pth")


def is_hub_name(source: str) -> bool:
    """Whether the text is shaped like `org/name`."""
    return _NAME.fullmatch(source) is not None


def fetch(name: str) -> Path:
    """The folder of a model in the Hub's cache, downloaded first where it is not there.

    Pickled weights are taken only where there are no safetensors.
    Raises `CheckpointError` where the Hub can't be reached, lacks the model or withholds it.
    """
    folder = _download(name, _SMALL + _SAFETENSORS)
    if any(file.endswith(_WEIGHTS) for file in list_folder(folder)):
        return folder
    return _download(name, _SMALL + _PICKLES)


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its licence on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"no file or folder {name}, and no such model on the Hub: check the name, or log in "
            "with `hf auth login` if it is private"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"no file or folder {name}, and the Hub can't give it ({one_line(error, 160)}): "
            "check the network, or download it elsewhere and give its folder"
        ) from error
