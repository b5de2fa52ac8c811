"""CUDA C kernels as shared libraries for this CPU: what compiles them, and where they are kept."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
CHECKS = (
    "null,alignment,bounds,shift-exponent,integer-divide-by-zero,signed-integer-overflow,"
    "float-cast-overflow"
)
DIALECT = ("-std=gnu++17", "-w", "-fPIC", "-U_FORTIFY_SOURCE")
FLAGS = (
    *("-O1", "-g1", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off"),
    f"-fsanitize={CHECKS}",
)
#: Seconds after which a library that nobody took is removed.
KEPT = 30 * 24 * 3600

#: A kernel in preprocessed text: its name and its parameters.
KERNEL = re.compile(
    r'extern "C" __attribute__\(\(visibility\("hidden"\)\)\)\s*void\s+(\w+)\s*\(([^()]*)\)'
)
#: What a library shows of a kernel.
SHOWN = """
extern "C" {{
__attribute__((visibility("default"))) void {0}_call(void** at) {{ emulator_call({0}, at); }}
__attribute__((visibility("default"))) char* {0}_statics() {{ return emulator_statics(); }}
__attribute__((visibility("default"))) const char* {0}_names() {{ return "{1}"; }}
__attribute__((visibility("default"))) const char* {0}_parameter(int i) {{
    return emulator_parameter({0}, i);
}}
}}
"""


class CompileError(Exception):
    """What the compiler says of a text."""


@cache
def find_compiler() -> str | None:
    """A C++ compiler that makes code for this machine, if there is one and it runs Linux."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    found = (shutil.which(name) for name in names if name)
    return next(filter(None, found), None) if sys.platform == "linux" else None


@cache
def runtime() -> Path:
    """The library that runs blocks and threads."""
    return _kept("launch", _compile_runtime)


def build(name: str, text: str, options: tuple[str, ...]) -> Path:
    """A library with the kernels of a text; `runtime` is loaded with it.

    name: of the text's file, for messages. options: the compiler's. CompileError.
    """
    launch = runtime()

    def compile_to(made: Path) -> None:
        source = _show(_preprocess(name, text, options))
        unit = made.with_suffix(".o")
        _run("-xc++-cpp-output", "-", "-c", *DIALECT, *FLAGS, "-o", str(unit), text=source)
        linked = ("-Wl,-z,defs", "-Wl,-rpath,$ORIGIN", "-lm", "-o", str(made))
        _run("-shared", str(unit), str(launch), *linked)

    return _kept("\0".join((launch.name, name, *options, text)), compile_to)


def _preprocess(name: str, text: str, options: tuple[str, ...]) -> str:
    arguments = ("-include", str(FOLDER / "on_cpu.h"), "-xc++", "-", "-E")
    found = _run(*DIALECT, *options, *arguments, text=f'#line 1 "{name}"\n{text}')
    return found.replace('"<stdin>"', f'"{name}"')  # or debuggers would know no other name


def _show(source: str) -> str:
    for name, parameters in KERNEL.findall(source):
        names = [re.sub(r".*\W", "", one.strip()) for one in parameters.split(",")]
        source += SHOWN.format(name, " ".join(names))
    return source


def _compile_runtime(made: Path) -> None:
    # its name in libraries that need it is without a folder, so that a cache can be moved
    name = f"-Wl,-soname,{_file('launch')}"
    _run("-shared", "-O2", *DIALECT, name, str(FOLDER / "launch.cpp"), "-o", str(made))


def _run(*arguments: str, text: str = "") -> str:
    compiler = find_compiler()
    if compiler is None:
        raise CompileError("there is no C++ compiler")
    command = [compiler, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr[:4000])
    return done.stdout


def _kept(key: str, compile_to: Callable[[Path], None]) -> Path:
    """The file of a key; made apart and moved, since other processes may make the same."""
    path = cache_folder() / _file(key)
    if path.is_file():
        os.utime(path)
        return path
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        made = Path(folder, path.name)
        compile_to(made)
        made.replace(path)
    _remove_old(path)
    return path


def _file(key: str) -> str:
    whole = f"{_environment()}\0{key}".encode()
    return f"{hashlib.sha256(whole).hexdigest()[:32]}.so"


@cache
def _environment() -> str:
    """All that libraries depend on but their own texts."""
    texts = [path.read_text() for path in sorted((*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")))]
    return "\0".join((_run("--version"), os.uname().machine, *DIALECT, *FLAGS, SHOWN, *texts))


def _remove_old(newest: Path) -> None:
    end = newest.stat().st_mtime - KEPT
    for path in newest.parent.glob("*.so"):
        if path.stat().st_mtime < end:
            path.unlink(missing_ok=True)


@cache
def cache_folder() -> Path:
    """Where libraries are kept: in the user's cache, or for this run where that cannot be."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root, "llama2gpu", "emulator")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="llama2gpu-emulator-"))
