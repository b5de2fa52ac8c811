"""What a build puts into the source distribution and the wheel, and that the wheel runs."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TREE = ("LICENSE", "README.md", "cli", "kernels", "llama2gpu", "pyproject.toml")
PACKAGE = ROOT / "llama2gpu"
LINKS = [path for path in PACKAGE.iterdir() if path.is_symlink()]
SOURCES = [*PACKAGE.rglob("*.py"), *(path for link in LINKS for path in link.glob("*.py"))]


def has_setuptools() -> bool:
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not has_setuptools(), reason="needs setuptools 77 or newer")


def build(kind: str, source: Path, out: Path) -> Path:
    """A `wheel` or `sdist` of a source tree, built by the project's own build backend."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the source distribution of this checkout, so it holds what both hold."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    tree.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for path in (ROOT / name for name in TREE):
        if path.is_dir():
            shutil.copytree(path, tree / path.name, symlinks=True, ignore=skip)
        elif path.exists():
            shutil.copy(path, tree)
    with tarfile.open(build("sdist", tree, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return zipfile.ZipFile(build("wheel", source, folder / "wheel"))


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    kernels = PACKAGE / "kernels"
    expected = [*SOURCES, PACKAGE / "py.typed", kernels / "README.md"]
    expected += [path for end in ("c", "cu", "cuh", "h") for path in kernels.glob(f"*.{end}")]
    expected += [*PACKAGE.glob("models/*/*"), *PACKAGE.glob("server/page/*")]
    names = {Path(name) for name in wheel.namelist()}
    found = {name for name in names if not name.parts[0].endswith(".dist-info")}
    assert found == {path.relative_to(ROOT) for path in expected}


def test_wheel_runs_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "llama2gpu", "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"llama2gpu {PROJECT['version']}\n"
