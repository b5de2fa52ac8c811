"""Files that were made to harm: each a small folder or file that must be refused in one line."""

import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save

from tests.checkpoints.awq import write_awq
from tests.checkpoints.gptq import matrices_of, set_fields, write_gptq
from tests.checkpoints.hostile_gguf import make_gguf
from tests.checkpoints.single_files import byte_vocabulary, write_ggjt, write_lmw
from tests.checkpoints.writers import CONFIG, random_tensors, write_huggingface, write_llama2c

TOUCHED = "touched"


class _Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def _zip(path: Path, data_pkl: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", b"\0" * 64)
        archive.writestr("archive/version", "3\n")


def _put(n: int) -> bytes:
    return b"r" + struct.pack("<I", n)


def _pickles(root: Path) -> dict[str, bytes]:
    ordered = b"ccollections\nOrderedDict\n"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + _put(2) + b"(" + storage + b"K\0"
    many = b"(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(40000)) + b"u"
    copied = b"](}" + many + _put(0) + ordered + _put(1)
    chain = b")" + b"".join(b"q\x00h\x00\x86" for _ in range(60))
    dims = b"(" + b"K\x01" * 100000 + b"t" + _put(0) + b"h\0\x89)t" + _put(3)
    return {
        "code": pickle.dumps(_Runs(root / TOUCHED), protocol=2),
        "nested code": pickle.dumps({"w": [_Runs(root / TOUCHED)]}, protocol=2),
        "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.",
        "uninitialized": b"\x80\x02ctorch\nTensor\n\x8a\x05\0\0\0\0\x10\x85R.",
        "copies": b"\x80\x02" + copied + b"h\x01h\0\x85R" * 20000 + b"e.",
        "tuple keys": b"\x80\x02}" + chain + b"Ns.",
        "dimensions": b"\x80\x02](" + tensor + dims + b"R" + b"h\x02h\x03R" * 9000 + b"e.",
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "protocol 4": pickle.dumps({"a": 1}, protocol=4),
        "no dictionary": b"\x80\x02K\x01.",
        "depth": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
        "no stop": b"\x80\x02}",
        "empty": b"",
    }


def _safetensors() -> dict[str, bytes]:
    def headed(fields: object, data: bytes = b"\0" * 64) -> bytes:
        text = json.dumps(fields).encode()
        return struct.pack("<Q", len(text)) + text + data

    def one(**fields: object) -> dict[str, object]:
        return {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **fields}}

    sound = save({"model.norm.weight": torch.ones(32)})
    return {
        "length": struct.pack("<Q", 1 << 62) + sound[8:],
        "length of all": struct.pack("<Q", len(sound)) + sound[8:],
        "no header": sound[:8],
        "a list": headed([1]),
        "nested": struct.pack("<Q", 10**6) + b"[" * 10**6,
        "overflow": headed(one(shape=[1 << 62, 1 << 62])),
        "outside": headed(one(data_offsets=[0, 1 << 40], shape=[1 << 38])),
        "backwards": headed(one(data_offsets=[64, 0])),
        "overlap": headed({"a": one()["a"], "b": one()["a"]}),
        "hole": headed(one(data_offsets=[32, 64], shape=[8])),
        "type": headed(one(dtype="F99")),
        "many": headed({f"t{n}": {} for n in range(500000)}),
    }


def _llama2c(header: list[int], size: int = 4096) -> bytes:
    return struct.pack("<7i", *header).ljust(size, b"\0")


def make(root: Path) -> list[Path]:
    """Writes every hostile checkpoint below `root`; returns what to open."""
    tensors = random_tensors(CONFIG)
    made = []
    for n, (name, data) in enumerate(_pickles(root).items()):
        folder = write_huggingface(root / f"pickle {n} {name}", CONFIG, tensors)
        (folder / "model.safetensors").unlink()
        _zip(folder / "pytorch_model.bin", data)
        made.append(folder)
    for name, data in _safetensors().items():
        folder = write_huggingface(root / f"safetensors {name}", CONFIG, tensors)
        (folder / "model.safetensors").write_bytes(data)
        made.append(folder)
    made += _archives(root) + _headers(root) + _claims(root) + _quantized(root)
    return made + _lists(root) + make_gguf(root)


def _archives(root: Path) -> list[Path]:
    tensors = random_tensors(CONFIG)
    folders = {
        name: write_huggingface(root / f"zip {name}", CONFIG, tensors, safe=False)
        for name in ("strides", "deflated", "large", "twice", "legacy", "parts")
    }
    paths = {name: folder / "pytorch_model.bin" for name, folder in folders.items()}
    claimed = {"model.embed_tokens.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}
    torch.save(claimed, paths["strides"])
    _zip(paths["deflated"], b"\x80\x02" + b"\0" * (64 << 20), zipfile.ZIP_DEFLATED)
    _zip(paths["large"], b"\x80\x02" + b")0" * (3 << 20) + b"}.")
    with zipfile.ZipFile(paths["twice"], "a") as archive:
        archive.writestr("PYTORCH_MODEL/DATA.PKL", _pickles(root)["code"])
    torch.save(tensors, paths["legacy"], _use_new_zipfile_serialization=False)
    shared = torch.zeros(1 << 12)
    torch.save({f"t{n}": shared for n in range(1000)}, paths["parts"])
    return list(folders.values())


def _headers(root: Path) -> list[Path]:
    most = (1 << 31) - 1
    magic = struct.pack("<Ii", 0x616B3432, 1)

    def simple(version: int, header: list[int]) -> bytes:
        return struct.pack("<I9i", 0x7FDD7F7F, version, *header).ljust(4096, b"\0")

    files = {
        "layers": _llama2c([32, 44, most, 4, 2, 96, 64]),
        "all": _llama2c([most] * 7),
        "least": _llama2c([-most - 1] * 7),
        "zeros": bytes(4096),
        "largest": _llama2c([1 << 18, 1 << 21, 4096, 256, 256, 1 << 23, 1 << 30]),
        "v1": magic + _llama2c([1 << 18, 1 << 21, 4096, 256, 256, 1 << 23, 1 << 30]),
        "group 0": struct.pack("<Ii", 0x616B3432, 2) + _llama2c([32, 44, 2, 4, 2, 96, 64]),
        "version 9": struct.pack("<Ii", 0x616B3432, 9) + bytes(400),
        "short": magic + bytes(9),
        "simple most": simple(3, [most] * 8),
        "simple least": simple(4, [-most - 1] * 8),
        "simple largest": simple(3, [1 << 18, 1 << 21, 256, 4096, 1 << 23, 1 << 30, 0, 0]),
        "simple group 0": simple(4, [32, 44, 4, 2, 96, 64, 0, 8]),
        "simple group -1": simple(4, [32, 44, 4, 2, 96, 64, -1, 4]),
        "simple group 1": simple(4, [32, 44, 4, 2, 96, 64, 1, 4]),
        "simple short": struct.pack("<I", 0x7FDD7F7F) + bytes(9),
        "one byte": b"x",
        "ggjt": b"tjgg" + bytes(100),
        "json": b'{"a": 1}',
        "zip": b"PK\x03\x04" + bytes(100),
    }
    for name, data in files.items():
        (root / f"{name}.bin").write_bytes(data)
    return [root / f"{name}.bin" for name in files]


def _claims(root: Path) -> list[Path]:
    tensors = random_tensors(CONFIG)
    layers = write_huggingface(root / "4096 layers", CONFIG, tensors)
    fields = json.loads((layers / "config.json").read_text())
    (layers / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 4096}))
    wide = root / "v0 of v1.bin"
    write_llama2c(wide, CONFIG, tensors, version=1)
    data = io.BytesIO(wide.read_bytes())
    data.seek(8)
    data.write(struct.pack("<i", 1 << 17))
    wide.write_bytes(data.getvalue())
    return [layers, wide]


def _quantized(root: Path) -> list[Path]:
    """GPTQ folders whose configuration or headers claim far more than the file holds."""
    fields: dict[str, dict[str, object]] = {
        "groups": {"group_size": 1},
        "bits": {"bits": 1 << 60},
        "group": {"group_size": -(1 << 60)},
        "method": {"quant_method": "../" * 100_000},
    }
    made = []
    for name, changed in fields.items():
        folder = write_gptq(root / f"gptq {name}", matrices_of())
        made.append(set_fields(folder, **changed))
        if "method" not in name:
            awq = write_awq(root / f"awq {name}", matrices_of())
            made.append(set_fields(awq, **changed))
    wide = write_gptq(root / "gptq wide", matrices_of())
    path = wide / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"intermediate_size": 1 << 21, "hidden_size": 1 << 18}))
    return [*made, wide]


def _lists(root: Path) -> list[Path]:
    """Vocabularies and lists of tensors that claim more than the file holds."""
    config = replace(CONFIG, hidden=88, kv_heads=4, vocab=264)
    tensors, words = random_tensors(config), byte_vocabulary(264)
    whole = root / "whole.ggjt"
    write_ggjt(whole, config, {}, words, multiple_of=8)
    start = whole.read_bytes()
    most, vector = (1 << 31) - 1, (1, 11, 0, 32)
    headers = [
        {2: most},
        {2: -1},
        {2: 1 << 22},
        {3: most},
        {4: 0},
        {4: most},
        {6: most},
        {6: 1 << 12},
    ]
    made = [whole]
    for n, header in enumerate(headers):
        write_ggjt(root / f"header {n}.ggjt", config, tensors, words, multiple_of=8, header=header)
        made.append(root / f"header {n}.ggjt")
    records = {
        "dimensions": struct.pack("<3i", 1 << 30, 11, 0),
        "no dimensions": struct.pack("<3i", 0, 11, 0) + b"norm.weight",
        "three": struct.pack("<6i", 3, 11, 0, 1, 1, 32) + b"norm.weight",
        "name": struct.pack("<4i", 1, -1, 0, 32),
        "long name": struct.pack("<4i", 1, most, 0, 32),
        "no name": struct.pack("<4i", 1, 0, 0, 32),
        "binary name": struct.pack("<4i", *vector) + b"norm\x1b[31m.w",
        "negative": struct.pack("<4i", 1, 11, 0, -32) + b"norm.weight",
        "empty": struct.pack("<4i", 1, 11, 0, 0) + b"norm.weight",
        "large": struct.pack("<5i", 2, 11, 0, most, most) + b"norm.weight",
        "kind": struct.pack("<4i", 1, 11, -1, 32) + b"norm.weight",
        "nothing": struct.pack("<4i", *vector) + b"norm.weight",
        "zeros": bytes(1 << 20),
    }
    after = {"nothing": b""}
    files = {f"{n}.ggjt": start + r + after.get(n, bytes(4096)) for n, r in records.items()}
    length = struct.pack("<9i", 0x67676A74, 1, 264, 32, 8, 4, 2, 8, 0)
    files["token.ggjt"] = length + struct.pack("<i", -1) + bytes(4096)
    files["long token.ggjt"] = length + struct.pack("<i", most) + bytes(4096)
    files["empty tokens.ggjt"] = length[:8] + struct.pack("<i", most) + length[12:] + bytes(1 << 24)
    files |= _lmw(root)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return [*made, *(root / name for name in files)]


def _lmw(root: Path) -> dict[str, bytes]:
    """The same of lmw, whose header is followed by tensors at once."""
    heads = {}
    for layout in "ABC":
        heads[layout] = write_lmw(root / "head", CONFIG, {}, layout, b"words").read_bytes()
    (root / "head").unlink()
    most = (1 << 32) - 1
    name = struct.pack("<I", 12) + b"norm.weight "
    records = {
        "no tensors": b"",
        "name": struct.pack("<I", most),
        "no name": struct.pack("<I", 0),
        "dimensions": name + struct.pack("<I", most),
        "no dimensions": name + struct.pack("<I", 0),
        "size": name + struct.pack("<2I", 1, most),
        "sizes": name + struct.pack("<3I", 2, most, most),
        "empty": name + struct.pack("<2I", 1, 0),
        "kind": name + struct.pack("<4I", 1, 1, most, most),
        "turned": name + struct.pack("<4I", 1, 1, 1, 132) + bytes(4),
        "zeros": bytes(1 << 20),
    }
    files = {
        f"{n} {layout}.lmw": heads[layout] + record + bytes(4096 if record else 0)
        for layout in heads
        for n, record in records.items()
    }
    tokenizer = heads["C"].index(b"words") - 4
    claimed = heads["C"][:tokenizer] + struct.pack("<I", most) + bytes(64)
    layers = heads["B"][:12] + struct.pack("<i", -1) + heads["B"][16:]
    return files | {"tokenizer.lmw": claimed, "layers.lmw": layers, "short.lmw": heads["A"][:9]}
