"""Finding tokenizers, damaged files, and fit to a checkpoint."""

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llama2gpu.errors import Llama2GPUError, TokenizerError
from llama2gpu.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from tests.tokenizer.conftest import pack_llama2c
from tests.tokenizer.test_formats import BYTES, CONTROLS


def damage(data: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return data[: rng.randrange(len(data))]
        case 1:
            return data + rng.randbytes(rng.randrange(1, 50))
        case _:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 2, 8))):
                flipped[rng.randrange(rng.choice((64, len(data))))] ^= 1 << rng.randrange(8)
            return bytes(flipped)


def test_damage_is_one_line_or_harmless(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, rng, refused = path.read_bytes(), random.Random(7), 0
    damaged = tmp_path / path.name
    for _ in range(150):
        damaged.write_bytes(damage(data, rng))
        refused += bool(message := failure(damaged))
        assert "\n" not in message
        assert len(message) < 600
    assert refused > 30
    assert capfd.readouterr() == ("", "")


def failure(path: Path) -> str:
    """Uses a tokenizer; gives the error's message, or nothing."""
    try:
        tokenizer = load_tokenizer(path)
        tokenizer.decode([*tokenizer.encode("Once é <s>\n"), *range(500)])
    except Llama2GPUError as error:
        return str(error)
    return ""


def test_a_panic_of_the_library_is_one_line(
    hf_bytes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    charsmap = '{"type": "Precompiled", "precompiled_charsmap": "AAAA"}'
    text = hf_bytes.read_text().replace('"normalizer": null', f'"normalizer": {charsmap}')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="precompiled_charsmap"):
        load_tokenizer(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [1, 5, 4000])
def test_every_cut_of_an_exact_format_is_noticed(llama2c: Path, tmp_path: Path, cut: int) -> None:
    vocab = load_tokenizer(llama2c).vocab
    data = llama2c.read_bytes()
    for broken in (data[:-cut], data + data[-cut:], data + bytes(cut)):
        (tmp_path / "tokenizer.bin").write_bytes(broken)
        with pytest.raises(TokenizerError):
            load_tokenizer(tmp_path, vocab=vocab)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\n",
        b"\n\x05\n",
        b"GGUF\x03\0\0\0" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        struct.pack("<IfI", 5, 0.0, 1 << 31),
        struct.pack("<IfI", 1 << 31, 0.0, 1 << 31),
        struct.pack("<IfI", 5, 0.0, 5) + b"abc",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": "1.0", "model": \xff}',
        b"IQ== 0\nIQ== 0\n",
        b"IQ== 0\nIg== 7\n",
        b"IQ== 0\n!!! 1\n",
        b"IQ== 0\nIg==\n",
        b"IQ== 0\n" + b"9" * 9000,
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="--tokenizer PATH") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_too_many_tokens_are_refused_without_reading_them(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(pack_llama2c([(0.0, b"x")]) + bytes(8 << 21))
    with pytest.raises(TokenizerError, match="more than"):
        load_tokenizer(path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(TokenizerError, match="larger than 64 MiB"):
        load_tokenizer(path)


def test_missing_and_unreadable(tmp_path: Path, llama2c: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match="Not a directory"):
        load_tokenizer(llama2c / "tokenizer.bin")
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(TokenizerError, match="not a regular file"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.model", "config.json", "tokenizer_config.json"])
def test_pipes_are_not_waited_on(tmp_path: Path, hf_bytes: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(hf_bytes.read_bytes())
    os.mkfifo(tmp_path / name)
    with pytest.raises(TokenizerError, match=rf"{name}: not a regular file.*--tokenizer PATH"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("large", [False, True])
def test_params_are_read_with_care(tmp_path: Path, tiktoken: Path, large: bool) -> None:
    tokenizer, params = tmp_path / "tokenizer.model", tmp_path / "params.json"
    tokenizer.write_bytes(tiktoken.read_bytes())
    params.write_text('{"dim": 8}')
    assert "<|eom_id|>" not in load_tokenizer(tokenizer)._controls()
    params.unlink()
    if large:
        params.write_text('{"dim": 8}')
        os.truncate(params, 1 << 40)
    else:
        os.mkfifo(params)
    assert "<|eom_id|>" in load_tokenizer(tokenizer)._controls()


def test_content_tells_the_format_not_the_name(path: Path, tmp_path: Path) -> None:
    (tmp_path / "anything").write_bytes(path.read_bytes())
    found = load_tokenizer(str(tmp_path / "anything"))
    assert (found.format, found.path) == (load_tokenizer(path).format, tmp_path / "anything")


def test_find_takes_the_first_that_exists(tmp_path: Path, llama2c: Path, hf_bytes: Path) -> None:
    vocab = load_tokenizer(hf_bytes).vocab
    found = find_tokenizer([tmp_path / "none", hf_bytes, llama2c], vocab=vocab)
    assert (found.format, found.path) == ("Hugging Face", hf_bytes)
    assert find_tokenizer([hf_bytes.parent], vocab=vocab).path == hf_bytes
    with pytest.raises(TokenizerError, match=rf"400 tokens.* {vocab} embedding rows"):
        find_tokenizer([llama2c, hf_bytes], vocab=vocab)
    for candidates in ([], [tmp_path / "none"]):
        with pytest.raises(TokenizerError, match="--tokenizer PATH"):
            find_tokenizer(candidates, vocab=vocab)


def test_a_folder_prefers_sentencepiece_unless_json_has_more(
    tmp_path: Path, spm: Path, hf_llama: Path
) -> None:
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(hf_llama))
    library.add_special_tokens(["<|im_end|>"])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.model").write_bytes(spm.read_bytes())
    tokens = load_tokenizer(spm).vocab
    found = [load_tokenizer(tmp_path, vocab=n) for n in (None, tokens, tokens + 1, tokens + 64)]
    assert [one.format for one in found] == ["SentencePiece"] * 2 + ["Hugging Face"] * 2
    assert [one.path.name for one in found] == ["tokenizer.model"] * 2 + ["tokenizer.json"] * 2


def test_rows_may_pad_some_formats(path: Path, tokenizer: Tokenizer) -> None:
    exact = tokenizer.format in ("llama2.c", "tiktoken")
    assert load_tokenizer(path, vocab=tokenizer.vocab).vocab == tokenizer.vocab
    for rows, fits in ((-1, False), (1, not exact), (1023, not exact), (1024, False)):
        if fits:
            assert load_tokenizer(path, vocab=tokenizer.vocab + rows).vocab == tokenizer.vocab
            continue
        with pytest.raises(TokenizerError, match=r"tokens.*--tokenizer PATH"):
            load_tokenizer(path, vocab=tokenizer.vocab + rows)


def test_the_header_of_llama2c_bounds_its_tokens(tmp_path: Path) -> None:
    data = pack_llama2c([*CONTROLS, *BYTES, (0.0, b"abcdefghij")])
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<I", 9) + data[4:])
    with pytest.raises(TokenizerError, match="longer than the longest"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("llama2c", ["sentencepiece", "tokenizers", "torch"]),
        ("spm", ["tokenizers", "torch"]),
        ("hf_bytes", ["sentencepiece", "torch", "tiktoken"]),
        ("tiktoken", ["sentencepiece", "torch", "tiktoken"]),
    ],
)
def test_one_format_loads_no_library_of_another(
    request: pytest.FixtureRequest, name: str, unwanted: list[str]
) -> None:
    path = request.getfixturevalue(name)
    code = (
        "import sys; from llama2gpu.tokenizer import load_tokenizer;"
        f"load_tokenizer({str(path)!r}).encode('a'); print(*sorted(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not set(unwanted) & set(answer.stdout.split())
