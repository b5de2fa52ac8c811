"""The house rules that a machine can hold: packaging, the way of imports, size, no clocks."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llama2gpu"
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
MAPPED = {"llama2gpu.cli": "cli", "llama2gpu.kernels": "kernels"}

BASE = {"config", "errors", "quant", "weights"}
STEP = {"batch", "cache", "model", "pages", "sampling"}
LOOP = {"backends.base", "backends.loop", "decoding", "request"}
ENGINE = BASE | STEP | LOOP | {"ops", "engine", "pace", "scheduler"}
QUANTIZING = {"quantizer", "calibrate", "open_quantizer"}
PLANNING = {"memory", "plan", "plan_fit"}
API = ENGINE | QUANTIZING | PLANNING
API |= {"api", "backends", "build", "chat", "checkpoints", "documents", "text", "tokenizer"}

#: What a part may import besides itself; a part is the longest name here that begins a module's.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "quant": {"config", "errors"},
    "weights": {"quant"},
    "ops": BASE,
    "files": set(),
    "memory": set(),
    "vocabulary": set(),
    "documents": {"errors"},
    "tokenizer": {"errors", "files", "vocabulary"},
    "text": {"errors"},
    "checkpoints": BASE | {"files", "memory", "vocabulary"},
    **dict.fromkeys(
        ("checkpoints.huggingface_fields", "checkpoints.huggingface_write", "checkpoints.save"),
        BASE | {"checkpoints", "files", "tokenizer", "vocabulary"},
    ),
    **dict.fromkeys(
        (
            "checkpoints.convert",
            "checkpoints.gguf_fields",
            "checkpoints.gguf_write",
            "checkpoints.llama2c_write",
        ),
        BASE | {"checkpoints", "files", "ops", "tokenizer", "vocabulary"},
    ),
    "kernels": BASE | {"ops"},
    "backends": BASE | {"ops", "kernels"},
    **dict.fromkeys(STEP, BASE | STEP | {"ops", "backends.base"}),
    "request": BASE | {"sampling"},
    "decoding": BASE | LOOP | {"ops"},
    "pace": set(),
    "scheduler": BASE | STEP | {"pace", "request"},
    "engine": ENGINE,
    "quantizer": BASE,
    **dict.fromkeys(("plan", "plan_fit"), ENGINE | {"checkpoints", "memory", "plan", "quant"}),
    "calibrate": BASE | STEP | {"backends.base", "ops", "quantizer"},
    "open_quantizer": BASE
    | {"backends.base", "calibrate", "checkpoints", "documents", "quantizer", "tokenizer"},
    "chat": {"checkpoints", "errors", "files", "open_quantizer", "tokenizer"},
    "build": BASE | STEP | {"backends.base", "checkpoints"},
    "api": API,
    "measure": API,
    "server": API | {"files"},
    "measure.results": {"errors", "files"},
    "measure.compare": {"errors", "files", "measure"},
    "measure.choose": API | {"files", "measure"},
    **dict.fromkeys(
        (
            "measure.binary",
            "measure.candidates",
            "measure.cuda_binary",
            "measure.cuda_bench",
            "measure.kernels",
            "measure.tune",
            "measure.warm_model",
        ),
        API | {"kernels", "measure"},
    ),
    "training": BASE | {"checkpoints", "documents", "files", "ops", "tokenizer"},
    "cli": API | {"kernels", "measure", "server", "training"},
    "__init__": API,
    "__main__": {"cli"},
}
#: The parts that may import Triton or CuPy.
DEVICE_CODE = ("kernels", "backends.triton", "backends.cupy")

HEAVY = {
    "fastapi",
    "pydantic",
    "uvicorn",
    "gguf",
    "huggingface_hub",
    "numpy",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "triton",
}
CLOCKS = {
    "monotonic",
    "monotonic_ns",
    "perf_counter",
    "perf_counter_ns",
    "process_time",
    "time",
    "timeit",
}


def find_modules() -> dict[str, Path]:
    """Files of the package by module name, `llama2gpu.` left off; links are not followed twice."""
    roots = {"": PACKAGE, "cli.": ROOT / "cli", "kernels.": ROOT / "kernels"}
    return {
        prefix + ".".join(path.relative_to(root).with_suffix("").parts): path
        for prefix, root in roots.items()
        for path in sorted(root.rglob("*.py"))
    }


MODULES = find_modules()
SOURCES = [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
SOURCES += sorted((ROOT / "bench").rglob("*.py"))


def is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def imported(source: str) -> Iterator[str]:
    """Full names of what a source imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """The imports that the module's part has no right to."""
    part = max((part for part in MAY_IMPORT if is_within(module, part)), key=len)
    allowed = MAY_IMPORT[part] | {part}
    device_code = any(is_within(module, other) for other in DEVICE_CODE)
    wrong = []
    for name in imported(source):
        package, _, inner = name.partition(".")
        if package == "llama2gpu" and not any(is_within(inner, other) for other in allowed):
            wrong.append(name)
        if package in {"triton", "cupy", "cupyx"} and not device_code:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert any(is_within(module, part) for part in MAY_IMPORT), "give the new part its row"
    assert not violations(module, MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops.rope", "from llama2gpu.backends.base import Backend"),
        ("model", "from llama2gpu.backends import choose_backend"),
        ("model", "from llama2gpu.backends.torch import TorchBackend"),
        ("checkpoints.hf", "def f():\n    import llama2gpu.tokenizer"),
        ("tokenizer.bpe", "from llama2gpu import config"),
        ("engine", "from llama2gpu.kernels import launch"),
        ("backends.torch", "import triton.language as tl"),
        ("engine", "if True:\n    from cupy import asarray"),
    ],
)
def test_wrong_imports_are_seen(module: str, source: str) -> None:
    assert violations(module, source)


def test_every_package_is_listed() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    folders |= {path for path in PACKAGE.iterdir() if path.is_symlink()}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(SETUPTOOLS["packages"]) == sorted(names)


@pytest.mark.parametrize(("package", "folder"), MAPPED.items())
def test_mapped_folder(package: str, folder: str) -> None:
    link = PACKAGE / folder
    assert SETUPTOOLS["package-dir"][package] == folder
    assert link.is_symlink()
    assert link.readlink() == Path("..", folder)
    assert not (ROOT / folder / "__init__.py").exists()
    assert not [path for path in (ROOT / folder).glob("*/*") if path.suffix != ".pyc"], "be flat"


def test_every_other_package_has_an_init() -> None:
    for package in set(SETUPTOOLS["packages"]) - set(MAPPED):
        assert ROOT.joinpath(*package.split("."), "__init__.py").is_file(), package


def test_command_line_imports_light() -> None:
    code = "import sys, llama2gpu.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(done.stdout.split())


def test_gguf_is_imported_for_its_files_alone() -> None:
    code = "import sys, llama2gpu; llama2gpu.load('stories', device='cpu'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "llama2gpu.checkpoints.gguf" in done.stdout.split()
    assert "gguf" not in done.stdout.split()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 350


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_test_measures_time(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {name.rpartition(".")[2] for name in imported(path.read_text(encoding="utf-8"))}
    assert not CLOCKS & names
