"""What is written in another format is, once read, the same: to the bit, or as far as is told."""

import subprocess
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llama2gpu.checkpoints import RandomCheckpoint, llama2c_write, open_checkpoint, tensor_shapes
from llama2gpu.checkpoints.convert import FORMATS, LLAMA2C
from llama2gpu.checkpoints.gguf_encode import BLOCKS
from llama2gpu.checkpoints.gguf_names import ROPE_FREQS, Model, Words
from llama2gpu.cli import convert as command_line
from llama2gpu.config import Config, RopeScaling
from llama2gpu.errors import CheckpointError, RequestError
from llama2gpu.ops.rope import rope_table
from llama2gpu.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from llama2gpu.training.spm import train_tokenizer
from tests.checkpoints.converting import CONFIG, ODD, TIED, assert_same, written
from tests.checkpoints.writers import random_tensors, write_huggingface, write_llama2c
from tests.training.conftest import make_text

TEXT = "Once upon a time  there was a kite.\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With fewer pieces than the models have rows."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    path.write_bytes(train_tokenizer([make_text()], 310)[0])
    return load_tokenizer(path)


def test_formats_are_those_of_the_command_line() -> None:
    assert command_line.FORMATS == FORMATS
    assert tuple(command_line.QUANTS.values()) == BLOCKS


@pytest.mark.parametrize("config", [CONFIG, TIED, ODD], ids=["untied", "tied", "odd"])
@pytest.mark.parametrize("form", ["hf", "llama2c-v0", "llama2c-v1", "gguf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lossless(
    form: str, config: Config, dtype: torch.dtype, words: Tokenizer, tmp_path: Path
) -> None:
    source = open_checkpoint(
        write_huggingface(tmp_path / "in", config, random_tensors(config, dtype))
    )
    found, tally = written(source, tmp_path / "out", form, words)
    assert found.config == config
    assert found.dtype == (torch.float32 if form in LLAMA2C else dtype)
    assert_same(found, source)
    count = len(list(tensor_shapes(config)))
    assert (tally.exact, tally.rounded, tally.error, tally.notes) == (count, 0, 0.0, [])
    assert sum(path.stat().st_size for path in tally.files) > 0
    assert tokenizer_of(found).encode(TEXT) == words.encode(TEXT)
    assert found.stop_ids == ((1, 2) if form in LLAMA2C else (2,))


@pytest.mark.parametrize("version", [0, 1])
def test_to_the_byte(version: int, tmp_path: Path) -> None:
    """The same file as the other writer's, but for the tables, which no program reads."""
    tensors = random_tensors(CONFIG)
    path = write_llama2c(tmp_path / "in.bin", CONFIG, tensors, version=version)
    source = open_checkpoint(path)
    assert source.format == f"llama2.c v{version}"
    written(source, tmp_path / "out.bin", f"llama2c-v{version}")
    data, wanted = (tmp_path / "out.bin").read_bytes(), path.read_bytes()
    if version == 0:
        tables = torch.cat([table.flatten() for table in rope_table(CONFIG, CONFIG.context)])
        head = CONFIG.vocab * CONFIG.dim * 4
        start = len(wanted) - head - tables.nbytes
        wanted = wanted[:start] + tables.numpy().tobytes() + wanted[-head:]
    assert data == wanted


def test_long_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made a part at a time; which one makes no difference."""
    monkeypatch.setattr(llama2c_write, "_POSITIONS", 7)
    config = replace(CONFIG, context=48)
    written(RandomCheckpoint(config, torch.float32), tmp_path / "out", "llama2c-v0")
    tables = torch.cat([table.flatten() for table in rope_table(config, 48)])
    data = (tmp_path / "out").read_bytes()
    found = torch.frombuffer(bytearray(data[: -4 * CONFIG.vocab * CONFIG.dim]), dtype=torch.float32)
    assert torch.allclose(found[-len(tables) :], tables, atol=1e-6)


SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    "yarn": RopeScaling("yarn", 4.0, original_context=12, attention_factor=1.25),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rope(kind: str, tmp_path: Path) -> None:
    config = replace(CONFIG, rope_theta=5e5, norm_eps=1e-6, rope_scaling=SCALINGS[kind])
    source = RandomCheckpoint(config, torch.float32)
    for form in ("hf", "gguf"):
        found, _ = written(source, tmp_path / form, form)
        for table, wanted in zip(rope_table(found.config, 64), rope_table(config, 64), strict=True):
            assert torch.allclose(table, wanted, atol=1e-6)
        assert replace(found.config, rope_scaling=None) == replace(config, rope_scaling=None)
    reader = gguf.GGUFReader(tmp_path / "gguf")
    if kind == "llama3":
        divisors = next(t for t in reader.tensors if t.name == ROPE_FREQS).data
        plain, scaled = (rope_angles(c) for c in (replace(config, rope_scaling=None), config))
        assert torch.allclose(torch.tensor(divisors), plain / scaled, rtol=1e-6)
        assert reader.get_field(Model.ROPE_TYPE) is None
    else:
        assert value_of(reader, Model.ROPE_TYPE) == kind
    for form in LLAMA2C:
        with pytest.raises(RequestError, match=r"hold no RoPE scaling.*--to hf or gguf"):
            written(source, tmp_path / form, form)
    assert not any((tmp_path / form).exists() for form in LLAMA2C)


def value_of(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def rope_angles(config: Config) -> torch.Tensor:
    """The angle of each pair at position 1, whose frequencies are below 1."""
    cos, sin = rope_table(config, 2)
    return torch.atan2(sin[1].double(), cos[1].double()).float()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 5e5}, "rope_theta of 500000.*--rope-theta 10000"),
        ({"norm_eps": 1e-6}, "norm_eps of 1e-06.*--norm-eps 1e-05"),
        ({"head_dim": 32}, "4 heads of 32 in a dim of 64"),
    ],
    ids=str,
)
def test_what_llama2c_would_run_wrongly(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = RandomCheckpoint(replace(CONFIG, **change), torch.float32)
    for form in LLAMA2C:
        with pytest.raises(RequestError, match=message):
            written(source, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []
    found, _ = written(source, tmp_path / "out", "gguf")
    assert found.config.head_dim == source.config.head_dim


def test_what_llama_cpp_would_run_wrongly(tmp_path: Path) -> None:
    for change in ({"truncate": False}, {"beta_fast": 16.0}):
        scaling = replace(SCALINGS["yarn"], **change)
        source = RandomCheckpoint(replace(CONFIG, rope_scaling=scaling), torch.float32)
        with pytest.raises(RequestError, match="give --to hf"):
            written(source, tmp_path / "out", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_keys_of_the_tokenizer(words: Tokenizer, tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, torch.float32)
    source.stop_ids, source.chat_template = (2, 5, 7, 9), "{{ messages }}"
    found, tally = written(source, tmp_path / "out.gguf", "gguf", words)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")

    def value(key: str) -> Any:
        return value_of(reader, key)

    assert (value(Words.MODEL), value(Words.PRE)) == ("llama", "default")
    assert (value(Words.BOS), value(Words.UNKNOWN)) == (1, 0)
    assert [value(key) for key in (Words.EOS, Words.EOT, Words.EOM)] == [2, 5, 7]
    assert (value(Words.ADD_BOS), value(Words.SPACE_PREFIX)) == (True, True)
    assert value(Words.CHAT_TEMPLATE) == found.chat_template == "{{ messages }}"
    pieces, types = value(Words.TOKENS), value(Words.TYPES)
    assert len(pieces) == len(types) == len(value(Words.SCORES)) == CONFIG.vocab
    assert pieces[-1] == "[PAD319]"
    assert types[:4] + types[259:260] + types[-1:] == [2, 3, 3, 6, 1, 5]
    assert any("9" in note for note in tally.notes)
    _, tally = written(source, tmp_path / "out.bin", "llama2c-v0", words)
    assert any("5, 7, 9" in note for note in tally.notes)


def test_places(words: Tokenizer, tmp_path: Path) -> None:
    source = open_checkpoint(write_llama2c(tmp_path / "in.bin", CONFIG, random_tensors(CONFIG)))
    before = (tmp_path / "in.bin").read_bytes()
    for form in ("llama2c-v1", "gguf"):
        with pytest.raises(RequestError, match=r"is read by this command"):
            written(source, tmp_path / "in.bin", form, overwrite=True)
        with pytest.raises(RequestError, match="no regular file"):
            written(source, tmp_path, form, overwrite=True)
    with pytest.raises(RequestError, match="name of the tokenizer"):
        written(source, tmp_path / "tokenizer.bin", "llama2c-v1", words)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "model.bin"
    written(source, out, "llama2c-v1", words)
    with pytest.raises(RequestError, match=r"exists: .*--overwrite"):
        written(source, out, "llama2c-v0", words)
    written(source, out, "llama2c-v0", words, overwrite=True)
    assert open_checkpoint(out).format == "llama2.c v0"
    # the tokenizer of another model stays, unless it is to be replaced
    (out.parent / "tokenizer.bin").write_bytes(b"other")
    with pytest.raises(RequestError, match=r"tokenizer.bin exists"):
        written(source, out.with_name("two.bin"), "llama2c-v0", words)
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.bin", "tokenizer.bin"]
    written(source, out.with_name("two.bin"), "llama2c-v0", words, overwrite=True)
    assert tokenizer_of(open_checkpoint(out)).encode(TEXT) == words.encode(TEXT)
    assert (tmp_path / "in.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin", "out"]


def test_a_tokenizer_of_another_model_stays_with_a_note(words: Tokenizer, tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, torch.float32)
    words = without_bos(words)
    _, tally = written(source, tmp_path / "out.bin", "llama2c-v1", words)
    assert len(tally.notes) == 1
    (tmp_path / "tokenizer.bin").write_bytes(b"other")
    for given in (None, words):
        _, tally = written(source, tmp_path / "out.bin", "llama2c-v1", given, overwrite=True)
        assert "which its programs would take, is not this model's" in tally.notes[-1]
    assert (tmp_path / "tokenizer.bin").read_bytes() == b"other"


def without_bos(words: Tokenizer) -> Tokenizer:
    """The same tokenizer, for texts without BOS, which llama2.c can't have."""
    found = copy(words)
    found.adds_bos = False
    return found


def test_texts_without_bos(words: Tokenizer, tmp_path: Path) -> None:
    source, ids = RandomCheckpoint(CONFIG, torch.float32), without_bos(words).encode(TEXT)
    assert ids == words.encode(TEXT)[1:]
    for form in ("hf", "gguf"):
        found, _ = written(source, tmp_path / form, form, without_bos(words))
        assert tokenizer_of(found).encode(TEXT) == ids


@pytest.mark.parametrize("form", FORMATS)
def test_failures_leave_nothing(
    form: str, words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the new file nor of a change to the old one."""
    source = RandomCheckpoint(CONFIG, torch.float32)
    written(source, tmp_path / "out", form, words)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    read = RandomCheckpoint.read
    for error in (KeyboardInterrupt, CheckpointError("damaged")):

        def fail(self: RandomCheckpoint, name: str, error: Any = error) -> torch.Tensor:
            if name == "layers.1.w2":
                raise error
            return read(self, name)

        monkeypatch.setattr(RandomCheckpoint, "read", fail)
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            written(source, tmp_path / "out", form, words, overwrite=True)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk(form: str, tmp_path: Path) -> None:
    """A limit on the size of a file stands for it: both fail in the midst of a write."""
    write_llama2c(tmp_path / "in.bin", CONFIG, random_tensors(CONFIG))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000));"
        "from llama2gpu.cli.main import main; sys.argv[0] = 'llama2gpu'; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "in.bin", "out", "--to", form, "-q"],
        cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("llama2gpu: error: can't write out: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.bin"]
