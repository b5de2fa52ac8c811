"""What is written in another format is, once read, the same: to the bit, or as far as is told."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from llama2gpu.checkpoints import Checkpoint, RandomCheckpoint, open_checkpoint, tensor_shapes
from llama2gpu.checkpoints.convert import FORMATS, LLAMA2C, Target, convert
from llama2gpu.checkpoints.gguf_names import NAMES, ROPE_FREQS, Model, Words
from llama2gpu.checkpoints.tally import Tally
from llama2gpu.cli import convert as command_line
from llama2gpu.config import Config, RopeScaling
from llama2gpu.errors import CheckpointError, RequestError
from llama2gpu.ops.rope import rope_table
from llama2gpu.quant import Dense, Int4, Int8
from llama2gpu.quant.spec import parse_spec
from llama2gpu.tokenizer import Tokenizer, load_tokenizer, tokenizer_of
from llama2gpu.training.spm import train_tokenizer
from tests.checkpoints.writers import random_tensors, write_huggingface, write_llama2c
from tests.training.conftest import make_text

CONFIG = Config(
    dim=64, hidden=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=320, context=48
)
TIED = replace(CONFIG, tied=True)
#: Sizes that 32 and 64 do not divide, and 8 does.
ODD = Config(dim=40, hidden=88, layers=1, heads=5, kv_heads=5, head_dim=8, vocab=320, context=32)
TEXT = "Once upon a time  there was a kite.\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With fewer pieces than the models have rows."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    path.write_bytes(train_tokenizer([make_text()], 310)[0])
    return load_tokenizer(path)


def written(
    source: Checkpoint, path: Path, form: str, words: Tokenizer | None = None, **how: Any
) -> tuple[Checkpoint, Tally]:
    tally = convert(source, Target(form, path, **how), words, lambda done, total: None)
    return open_checkpoint(path), tally


def assert_same(found: Checkpoint, source: Checkpoint) -> None:
    for name, _ in tensor_shapes(source.config):
        assert torch.equal(found.read(name).float(), source.read(name).float()), name


def test_formats_are_those_of_the_command_line() -> None:
    assert command_line.FORMATS == FORMATS


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


def test_int8_of_llama2c(tmp_path: Path) -> None:
    for config, group, notes in ((CONFIG, 32, 1), (replace(CONFIG, hidden=128), 64, 0),
                                 (ODD, 8, 1)):  # fmt: skip
        tensors = random_tensors(config)
        tensors["layers.0.w1"][3:5] = 0.0
        source = open_checkpoint(write_huggingface(tmp_path / f"{group}", config, tensors))
        found, tally = written(source, tmp_path / f"{group}.bin", "llama2c-v2")
        assert len(tally.notes) == notes
        assert all(f"scales are of {group} values" in note for note in tally.notes)
        lost = total = 0.0
        for name, shape in tensor_shapes(config):
            value, wanted = found.read(name), source.read(name)
            if len(shape) == 1:
                assert torch.equal(value, wanted)
                continue
            steps = wanted.view(-1, group).abs().amax(1) / 127
            error = (value - wanted).view(-1, group).abs().amax(1)
            assert (error <= 0.5001 * steps).all(), name
            lost += float((value - wanted).double().square().sum())
            total += float(wanted.double().square().sum())
        assert tally.rounded == 9 * config.layers - 2 * config.layers + 2
        assert tally.error == pytest.approx((lost / total) ** 0.5)
        wanted_bytes = (tmp_path / f"{group}.bin").read_bytes()
        other = write_llama2c(tmp_path / "o.bin", config, tensors, version=2, group=group)
        if not (tensors["layers.0.w1"] == 0).any():
            assert other.read_bytes() == wanted_bytes


@pytest.mark.parametrize("asked", ["int8", "int8:64", "int8:32"])
def test_int8_stays_as_it_is(asked: str, tmp_path: Path) -> None:
    """Groups of a multiple of the file's: llama2.c's and GGUF's scales are repeated."""
    config = replace(CONFIG, hidden=128)
    source = RandomCheckpoint(config, torch.float16, quant=parse_spec(asked))
    dequantized = {
        name: source.weight(name).dequantize(torch.float32)
        for name, shape in tensor_shapes(config)
        if len(shape) == 2
    }
    for form in ("gguf", "hf", "llama2c-v1", "llama2c-v2"):
        found, tally = written(source, tmp_path / form, form)
        fits = form != "llama2c-v2" or asked != "int8:32"
        kept = {name for name in dequantized if fits or "." not in name}
        if form == "llama2c-v2":
            kept -= {"embed", "output"}
        for name in kept:
            values = found.weight(name).dequantize(torch.float32)
            assert torch.equal(values, dequantized[name]), (form, name)
        assert tally.rounded == len(dequantized) - len(kept)
        assert (found.quantization is not None) == (form in ("gguf", "hf"))


@pytest.mark.parametrize("asked", ["int4:32", "int4:32+zeros", "int4:32+head"])
def test_int4_stays_as_it_is(asked: str, tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, torch.float16, quant=parse_spec(asked))
    for form in ("gguf", "hf"):
        found, tally = written(source, tmp_path / form, form)
        assert tally.rounded == 0  # a zero point of 8 times a scale is a float16 too
        for name in ("layers.0.wq", "layers.1.w2", "output"):
            wanted = source.weight(name)
            values = wanted.dequantize(torch.float32)
            assert torch.equal(found.weight(name).dequantize(torch.float32), values), name
            if asked != "int4:32+zeros" and not isinstance(wanted, Dense):
                assert isinstance(found.weight(name), Int4)


def test_what_blocks_can_not_have(tmp_path: Path) -> None:
    """Zero points that float16 must round, columns in another order, and a scale a row of 40."""
    source = RandomCheckpoint(CONFIG, torch.float16, quant=parse_spec("int4:32+zeros"))
    weight, read = source.weight("layers.0.wq"), source.weight
    assert isinstance(weight, Int4)
    assert weight.zeros is not None
    other = read("layers.0.wv")
    assert isinstance(other, Int4)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    scales = torch.rand(weight.scales.shape).half()
    changed = {
        "layers.0.wq": replace(weight, zeros=torch.full_like(weight.zeros, 13), scales=scales),
        "layers.0.wv": replace(other, order=order),
    }
    source.weight = lambda name: changed[name] if name in changed else read(name)  # type: ignore[method-assign]
    found, tally = written(source, tmp_path / "out.gguf", "gguf")
    kinds = {info.name: info.dtype for info in found.tensors()}
    assert kinds["layers.0.wq"] == "Q4_1"
    assert kinds["layers.0.wv"] == "float16"
    assert tally.rounded == 2
    for name, weight in changed.items():
        error = found.read(name).float() - weight.dequantize(torch.float32)
        assert 0 < error.abs().max() < 13 * 2.0**-11
    odd = RandomCheckpoint(ODD, torch.float16, quant=parse_spec("int8"))
    assert written(odd, tmp_path / "odd.gguf", "gguf")[0].quantization is None


@pytest.mark.parametrize("config", [CONFIG, TIED, ODD], ids=["untied", "tied", "odd"])
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_gguf(quant: str, config: Config, tmp_path: Path) -> None:
    source = RandomCheckpoint(config, torch.bfloat16)
    found, tally = written(source, tmp_path / "out.gguf", "gguf", quant=quant)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    head = "embed" if config.tied else "output"
    rounded = 0
    for name, shape in tensor_shapes(config):
        stored, wanted = tensors[NAMES(name)], source.read(name).float().numpy()
        assert tuple(stored.shape) == shape[::-1]
        blocks = len(shape) == 2 and shape[1] % 32 == 0
        kind = "F32" if len(shape) == 1 else "BF16"
        if blocks:
            kind = "Q8_0" if name == head else quant
            kept = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType[kind])
            wanted = gguf.quants.dequantize(kept, gguf.GGMLQuantizationType[kind])
        rounded += blocks
        assert stored.tensor_type.name == kind
        read = gguf.quants.dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(read.reshape(shape), wanted), name
        assert np.array_equal(found.read(name).float().numpy(), wanted), name
    assert tally.rounded == rounded
    assert (tally.error > 0) == (rounded > 0)
    # quantized once more in the same way, nothing changes
    again, tally = written(found, tmp_path / "again.gguf", "gguf", quant=quant)
    assert_same(again, found)
    if quant == "Q8_0":
        assert tally.rounded == 0
    plain, _ = written(found, tmp_path / "plain.gguf", "gguf", dense=True)
    assert plain.quantization is None


def test_types(tmp_path: Path) -> None:
    source = RandomCheckpoint(CONFIG, torch.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for form in ("hf", "gguf"):
            path = tmp_path / f"{form}-{dtype}"
            found, tally = written(source, path, form, dtype=dtype)
            assert found.dtype == dtype
            wanted = source.read("layers.0.w1").to(dtype)
            assert torch.equal(found.read("layers.0.w1"), wanted)
            assert (tally.error > 0) == (dtype != torch.float32)
            assert tally.error < {torch.float16: 2e-3, torch.bfloat16: 4e-3}.get(dtype, 1e-9)


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize(("wrong", "message"), [(1e6, "beyond float16"), (torch.nan, "NaN")])
def test_weights_beyond_float16(form: str, wrong: float, message: str, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["layers.1.w2"][3, 4] = wrong
    source = open_checkpoint(write_huggingface(tmp_path / "in", CONFIG, tensors))
    with pytest.raises(RequestError, match=f"layers.1.w2.*{message}"):
        written(source, tmp_path / "out", form, dtype=torch.float16)
    for quant, kind in ((None, "llama2c-v2"), ("Q8_0", "gguf")):
        if wrong != wrong:
            with pytest.raises(RequestError, match=f"layers.1.w2.*{message}"):
                written(source, tmp_path / "out", kind, quant=quant)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


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
    assert done.stderr.startswith("llama2gpu: error: can't write ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.bin"]


def test_gptq_and_back(tmp_path: Path) -> None:
    """GGUF's blocks become GPTQ's groups, and blocks again."""
    source = RandomCheckpoint(CONFIG, torch.float32)
    for quant, kind in (("Q8_0", Int8), ("Q4_0", Int4)):
        first, _ = written(source, tmp_path / f"{quant}.gguf", "gguf", quant=quant)
        folder, tally = written(first, tmp_path / quant, "hf")
        assert tally.rounded == 0
        assert isinstance(folder.weight("layers.0.wq"), kind)
        assert isinstance(folder.weight("embed"), Dense)  # other engines read no other
        assert_same(folder, first)
        again, _ = written(folder, tmp_path / f"{quant}-again.gguf", "gguf", quant=quant)
        assert_same(again, first)
        dense, _ = written(first, tmp_path / f"{quant}-dense", "hf", dense=True)
        assert dense.quantization is None
        assert_same(dense, first)
