"""Any checkpoint, by path or by its name on the Hub; what it is shows in what it holds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR

from llama2gpu.checkpoints import ggjt, gguf, gguf_names, hub, lmw, simple_llama
from llama2gpu.checkpoints.base import Checkpoint
from llama2gpu.checkpoints.files import list_folder, read_start, status
from llama2gpu.checkpoints.huggingface import open_huggingface
from llama2gpu.checkpoints.llama2c import open_llama2c
from llama2gpu.checkpoints.meta import open_meta
from llama2gpu.checkpoints.rope_config import parse_scaling, stretched
from llama2gpu.errors import CheckpointError, UnsupportedModelError
from llama2gpu.files import one_line

#: Models that come with the package, by name.
SHIPPED = {"stories": Path(__file__).resolve().parents[1] / "models" / "stories"}

#: Readers of single files by their magic number; llama2.c's oldest files have none.
_FILES: dict[bytes, Callable[[Path], Checkpoint]] = {
    gguf_names.MAGIC: gguf.open_gguf,
    ggjt.MAGIC: ggjt.open_ggjt,
    lmw.MAGIC: lmw.open_lmw,
    simple_llama.MAGIC: simple_llama.open_simple_llama,
}
_OTHERS = {
    b"fmgg": "ggmf",
    b"lmgg": "ggml",
}

#: Starts of zip files, of PyTorch's older pickles, and of JSON; no llama2.c header has them.
_PARTS = (b"PK\x03\x04", b"\x80\x02\x8a", b'{"', b"{\n")


def open_checkpoint(
    source: str | Path,
    *,
    rope_theta: float | None = None,
    rope_scaling: str | None = None,
    norm_eps: float | None = None,
) -> Checkpoint:
    """Opens a checkpoint of one file, a folder of Meta's or Hugging Face's, or a model by its name.

    A path that exists is opened; otherwise "stories" is the model that comes with the package,
    and a name such as `org/name` is fetched from the Hub.
    `rope_theta`, `rope_scaling` (`rope_config.stretched` reads it, and the context grows with it)
    and `norm_eps` take the place of what the checkpoint says, or does not say.
    Raises `CheckpointError`, whose message is always one line, and `RequestError` for a scaling.
    """
    if rope_scaling is not None:
        parse_scaling(rope_scaling)  # what is wrong is told before the Hub is asked
    try:
        checkpoint = _open(source)
        if rope_theta is not None:
            checkpoint.config = replace(checkpoint.config, rope_theta=rope_theta)
        if rope_scaling is not None:
            checkpoint.config = stretched(checkpoint.config, rope_scaling)
        if norm_eps is not None:
            checkpoint.config = replace(checkpoint.config, norm_eps=norm_eps)
    except CheckpointError as error:
        if str(error) == (message := one_line(error)):
            raise
        raise type(error)(message) from error
    return checkpoint


def _open(source: str | Path) -> Checkpoint:
    path = Path(source)
    found = status(path)
    if found is None:
        if str(source) in SHIPPED:
            return _open_folder(SHIPPED[str(source)])
        if not hub.is_hub_name(str(source)):
            raise CheckpointError(
                f"no such file or folder: {source}; give a path, a Hub name such as org/name, "
                f"or {', '.join(SHIPPED)}, which comes with the package"
            )
        path = hub.fetch(str(source))
        return _open_folder(path)
    return _open_folder(path) if S_ISDIR(found.st_mode) else _open_file(path)


def _open_folder(path: Path) -> Checkpoint:
    names = list_folder(path)
    if "config.json" in names:
        return open_huggingface(path)
    if "params.json" in names:
        return open_meta(path)
    raise CheckpointError(
        f"{path} holds neither config.json (Hugging Face) nor params.json (Meta): "
        "give the folder of a checkpoint, or a checkpoint of one file"
    )


def _open_file(path: Path) -> Checkpoint:
    start = read_start(path, 16)
    if start[:4] in _FILES:
        return _FILES[start[:4]](path)
    if start[:4] in _OTHERS:
        raise UnsupportedModelError(
            f"{path} is a {_OTHERS[start[:4]]} file, which is not supported: "
            "give the model as GGUF, or its safetensors folder"
        )
    if start.startswith(_PARTS) or start[8:10] == b'{"':
        raise CheckpointError(f"{path} is one file of a checkpoint: give its folder, {path.parent}")
    return open_llama2c(path)
