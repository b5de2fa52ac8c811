"""The parts of training: text, tokenizer, batches, schedule, weights, curve."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llama2gpu.checkpoints import open_checkpoint
from llama2gpu.config import Config, RopeScaling
from llama2gpu.documents import read_documents
from llama2gpu.errors import RequestError
from llama2gpu.tokenizer.sentencepiece import read_sentencepiece
from llama2gpu.training.data import Corpus, encode_corpus
from llama2gpu.training.export import export_files
from llama2gpu.training.loop import Record, Settings, make_optimizer, training_dtype
from llama2gpu.training.net import Net
from llama2gpu.training.plot import loss_curve
from llama2gpu.training.spm import train_tokenizer
from tests.checkpoints.writers import CONFIG, random_tensors
from tests.training.conftest import make_text

DOCUMENTS = make_text().split("\n<|endoftext|>\n")
WORDS = read_sentencepiece(Path("t"), train_tokenizer(DOCUMENTS, 320)[0], None)


def test_documents(tmp_path: Path) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes("\ufeffOne\r\ntwo\r\n<|endoftext|>\r\n\r\n<|endoftext|>\nthree".encode())
    other.write_text("no <|endoftext|> here\n")
    assert read_documents([path, other]) == ["One\ntwo", "three", "no <|endoftext|> here"]


@pytest.mark.parametrize(
    "text", ["Tom saw a kite.", "", "\0☃ 漢字 \t\n\n  x ", "012345", "<s></s>"]
)
def test_any_text_comes_back(text: str) -> None:
    ids = WORDS.encode(text)
    assert WORDS.decode(ids) == text
    assert ids[0] == 1
    assert not {0, 1, 2} & set(ids[1:])


def test_tokenizer_repeats_and_has_llamas_ids() -> None:
    assert train_tokenizer(DOCUMENTS, 320) == train_tokenizer(DOCUMENTS, 320)
    assert (WORDS.vocab, WORDS.bos_id, WORDS.eos_ids) == (320, 1, (2,))
    assert [WORDS.token(id).control for id in range(4)] == [False, True, True, False]


def test_long_lines_are_learnt_from() -> None:
    data, size = train_tokenizer([" ".join(DOCUMENTS).replace("\n", " ") * 4], 320)
    assert size == 320
    assert len(read_sentencepiece(Path("t"), data, None).encode(DOCUMENTS[0])) < 60


def test_held_out_documents_are_never_trained_on() -> None:
    corpus = encode_corpus(DOCUMENTS, WORDS, 32, 0.1)
    whole = [id for text in DOCUMENTS for id in [*WORDS.encode(text), 2]]
    assert [*corpus.train, *corpus.held_out] == whole
    assert corpus.train[-1] == 2
    assert corpus.held_out[0] == 1
    assert 0.1 <= len(corpus.held_out) / len(whole) < 0.2


def test_one_document_gives_its_end() -> None:
    corpus = encode_corpus(["\n".join(DOCUMENTS)], WORDS, 32, 0.0)
    assert len(corpus.held_out) == 33
    assert corpus.held_out[-1] == 2


def test_too_small() -> None:
    with pytest.raises(RequestError, match="give more text"):
        encode_corpus(DOCUMENTS[:1], WORDS, 64, 0.01)


def test_batches_depend_on_seed_and_index_alone() -> None:
    stream = np.arange(100, dtype=np.uint16)
    corpus = Corpus(stream[:66], stream[66:], 32)
    batch = corpus.batch(3, 7, 64)
    assert batch.shape == (64, 33)
    assert batch.equal(corpus.batch(3, 7, 64))
    assert not batch.equal(corpus.batch(3, 8, 64))
    assert not batch.equal(corpus.batch(4, 7, 64))
    assert (batch.diff() == 1).all()
    seen = set(torch.cat([corpus.batch(0, n, 64) for n in range(20)])[:, 0].tolist())
    assert seen == set(range(34))


def test_windows_begin_where_their_documents_do() -> None:
    lengths = [5, 8, 40, 6, 30]
    begins = np.cumsum([0, *lengths[:-1]])
    corpus = Corpus(np.arange(sum(lengths)), np.arange(20), 10, begins)
    starts = set(torch.cat([corpus.batch(0, n, 64) for n in range(20)])[:, 0].tolist())
    short = {0, 5, 53}
    long = set(range(13, 53)) | set(range(59, 89 - 10))
    assert starts == short | long


def test_held_out_windows_lie_side_by_side() -> None:
    corpus = Corpus(np.arange(9), np.arange(100), 10)
    windows = torch.cat(list(corpus.held_out_batches(4, 100)))
    assert windows[:, 0].tolist() == list(range(0, 90, 10))
    assert [len(b) for b in corpus.held_out_batches(4, 6)] == [4, 2]


def test_schedule() -> None:
    s = Settings(100, 1, 1, lr=1.0, warmup=10, seed=0, eval_every=1, dtype=torch.float32)
    rates = [s.rate(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[54] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_start_and_decay() -> None:
    config = Config(256, 512, 8, 4, 2, 64, vocab=512, context=64, tied=True)
    net = Net(config, 64, torch.Generator().manual_seed(0))
    for name, parameter in net.named_parameters():
        std = 0.0 if name.endswith("norm") else 0.005 if name.endswith((".wo", ".w2")) else 0.02
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    matrices, vectors = make_optimizer(net).param_groups
    assert matrices["weight_decay"] == 0.1
    assert vectors["weight_decay"] == 0.0
    assert {p.dim() for p in matrices["params"]} == {2}
    assert sum(p.numel() for g in (matrices, vectors) for p in g["params"]) == config.parameters
    assert training_dtype(torch.device("mps")) == torch.float32


SCALINGS = [
    RopeScaling("linear", 2.0),
    RopeScaling("llama3", 8.0, original_context=32),
    RopeScaling("yarn", 4.0, original_context=16, attention_factor=1.1),
]


@pytest.mark.parametrize("scaling", [None, *SCALINGS])
def test_exported_weights_come_back(tmp_path: Path, scaling: RopeScaling | None) -> None:
    from dataclasses import replace

    config = replace(CONFIG, rope_scaling=scaling)
    tensors = random_tensors(config)
    for name, data in export_files(config, tensors, WORDS, torch.float32).items():
        (tmp_path / name).write_bytes(data)
    read = open_checkpoint(tmp_path)
    assert read.config == config
    assert (read.bos_id, read.stop_ids) == (1, (2,))
    for name, tensor in tensors.items():
        assert read.read(name).equal(tensor)


def test_curve() -> None:
    pytest.importorskip("matplotlib")
    records = [Record(n, 1 / n, 1 / n if n == 5 else None, 0.1, 1.0) for n in range(1, 6)]
    curve = loss_curve(records)
    assert curve is not None
    assert b"<svg" in curve
    assert curve == loss_curve(records)


def test_no_curve_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert loss_curve([]) is None
