"""The tokenizer and its files go along into a written folder."""

import json
import os
from pathlib import Path

import pytest
import torch

from llama2gpu.checkpoints import open_checkpoint, tensor_shapes
from llama2gpu.checkpoints.chat_template import chat_template_of
from llama2gpu.checkpoints.huggingface_write import write_huggingface as write
from llama2gpu.errors import CheckpointError
from llama2gpu.tokenizer import load_tokenizer
from llama2gpu.training.spm import train_tokenizer
from tests.checkpoints.gptq import CONFIG
from tests.checkpoints.test_huggingface_write import DENSE, add_all, save
from tests.checkpoints.writers import random_tensors, write_llama2c
from tests.training.conftest import make_text


def test_files_go_along(tmp_path: Path) -> None:
    source_path = tmp_path / "in"
    save(source_path, DENSE)
    beside = {
        "tokenizer.json": b"{1",
        "tokenizer_config.json": b"{2",
        "chat_template.jinja": b"{3",
        "special_tokens_map.json": b"{4",
        "generation_config.json": b'{"eos_token_id": [5, 6]}',
    }
    for name, data in {**beside, "README.md": b"5"}.items():
        (source_path / name).write_bytes(data)
    source = open_checkpoint(source_path)
    source.bos_id = 4
    with write(tmp_path / "out", CONFIG, torch.float16, source=source) as folder:
        for name in DENSE:
            folder.add(name, source.weight(name))
    assert {n: (tmp_path / "out" / n).read_bytes() for n in beside} == beside
    assert not (tmp_path / "out" / "README.md").exists()
    read = open_checkpoint(tmp_path / "out")
    assert (read.bos_id, read.stop_ids) == (4, (5, 6))
    (source_path / "chat_template.jinja").unlink()
    (source_path / "chat_template.jinja").mkdir()
    with (
        pytest.raises(CheckpointError, match="not a regular file"),
        write(tmp_path / "other", CONFIG, torch.float16, source=source) as folder,
    ):
        add_all(folder, DENSE)
    assert not (tmp_path / "other").exists()


def test_templates_that_are_no_files(tmp_path: Path) -> None:
    """A pipe would block forever, and a device never end."""
    save(tmp_path / "in", DENSE)
    source, path = open_checkpoint(tmp_path / "in"), tmp_path / "in" / "chat_template.jinja"
    makers = (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))
    for make in makers:
        make(path)
        with pytest.raises(CheckpointError, match="not a regular file"):
            chat_template_of(source)
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(b"{" * (1 << 20) + b"{")
    with pytest.raises(CheckpointError, match="no chat template"):
        chat_template_of(source)
    path.write_text("{{ é }}", encoding="utf-8")
    assert chat_template_of(source) == "{{ é }}"


def test_from_a_llama2c_file(tmp_path: Path, stories: Path) -> None:
    source = open_checkpoint(stories / "stories260K.bin")
    tokenizer = load_tokenizer(stories / "tok512.bin", vocab=512)
    for given in (None, tokenizer):
        out = tmp_path / str(given is None)
        with write(out, source.config, torch.float32, source=source, tokenizer=given) as folder:
            for name, _ in tensor_shapes(source.config):
                folder.add(name, source.weight(name))
        read = open_checkpoint(out)
        assert read.config == source.config
        assert (read.bos_id, read.stop_ids) == (1, (1, 2))
        for name, _ in tensor_shapes(source.config):
            assert torch.equal(read.read(name), source.read(name)), name
        name = "tokenizer.bin" if given is None else "tokenizer.model"  # which other engines read
        assert [path.name for path in read.tokenizer_files] == [name]
        text = "Once upon a time, there was a kite."
        assert load_tokenizer(out, vocab=512).encode(text) == tokenizer.encode(text)


def test_a_single_file_beside_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"words")
    source = open_checkpoint(write_llama2c(tmp_path / "m.bin", CONFIG, random_tensors(CONFIG)))
    with write(tmp_path / "out", CONFIG, torch.float16, source=source) as folder:
        for name, _ in tensor_shapes(CONFIG):
            folder.add(name, source.read(name))
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"words"


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    """It takes the place of those beside the source, and is described to other engines."""
    (tmp_path / "words.model").write_bytes(train_tokenizer([make_text()], 320)[0])
    tokenizer = load_tokenizer(tmp_path / "words.model")
    save(tmp_path / "in", DENSE)
    (tmp_path / "in" / "tokenizer.json").write_bytes(b"{}")
    source = open_checkpoint(tmp_path / "in")
    out = tmp_path / "out"
    with write(out, CONFIG, torch.float16, source=source, tokenizer=tokenizer) as folder:
        add_all(folder, DENSE)
    assert not (out / "tokenizer.json").exists()
    assert (out / "tokenizer.model").read_bytes() == tokenizer.path.read_bytes()
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert (told["tokenizer_class"], told["bos_token"]) == ("LlamaTokenizer", "<s>")
    assert open_checkpoint(out).stop_ids == tokenizer.eos_ids
