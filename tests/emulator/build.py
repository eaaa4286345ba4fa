"""Compiles the bindings of emulated kernels: `load("planted")` is the module of planted.cpp, which stands beside this.

What is built lies under build/emulator/ in the repository, named after a hash of all that went into it."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FLAGS = [
    *("-std=c++17", "-O1", "-shared", "-fPIC"),
    "-fvisibility=hidden",  # keeps the emulators of two modules apart
    "-fno-strict-aliasing",  # kernel text loads vectors through pointers of another type, as is usual in CUDA
    *("-fsanitize=alignment,bounds,shift-exponent", "-fsanitize-undefined-trap-on-error"),  # traps: no run-time library
]


def obstacle() -> str | None:
    """Says what keeps the emulator from being compiled here, if anything does."""
    if sys.platform != "linux":
        return "the kernel emulator runs on Linux only (ucontext, memory protection)"
    if shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler here ({compiler()[0]}; the environment variable CXX names another)"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed (pip install 'iact[test]' brings it)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h is not installed (the system's package python3-dev brings it)"
    return None


def load(name: str) -> ModuleType:
    """The compiled module of `name`.cpp. Raises `RuntimeError` with the compiler's words if it does not compile."""
    command = compile_command(name)
    library = ROOT / "build" / "emulator" / f"{name}-{fingerprint(command)}" / f"{name}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(library.with_suffix(".lock")):
        if not library.exists():
            build([*command, "-o"], library)
    spec = importlib.util.spec_from_file_location(name, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler() -> list[str]:
    return os.environ.get("CXX", "c++").split() or ["c++"]


def compile_command(name: str) -> list[str]:
    import pybind11

    torch_headers = Path(importlib.util.find_spec("torch").origin).parent / "include"
    ours = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    theirs = [torch_headers, pybind11.get_include(), sysconfig.get_path("include")]
    systems = [part for folder in theirs for part in ("-isystem", str(folder))]
    return [*compiler(), *FLAGS, *ours, *systems, str(HERE / f"{name}.cpp")]


def fingerprint(command: list[str]) -> str:
    """A hash of the sources, the command, and the versions of all that the command names."""
    described = subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout
    parts = [*command, described, version("torch"), version("pybind11"), sys.version]
    for path in sorted([*(ROOT / "csrc").glob("*.h"), *HERE.glob("*.h"), Path(command[-1])]):
        parts += [path.name, path.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a file lock, so that of several test processes one compiles and the others wait for it."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(command: list[str], library: Path) -> None:
    """Compiles under another name first: an interrupted build must not pass for a finished one."""
    unfinished = library.with_suffix(".unfinished")
    done = subprocess.run([*command, str(unfinished)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{library.stem}.cpp does not compile:\n{done.stderr}")
    unfinished.rename(library)
