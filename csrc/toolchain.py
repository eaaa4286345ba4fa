"""Which CUDA toolkit compiles the kernels, and with which flags: for setup.py and for the tests of compiled kernels."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OLDEST_TORCH = (2, 11)  # the extension uses torch's stable ABI as of this version: it loads in it and in later ones
STABLE_ABI = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"  # in the words of TORCH_CUDA_ARCH_LIST
# the standard is that of the oldest torch's headers, which those of later ones accept
NVCC_FLAGS = ["-std=c++17", STABLE_ABI, "-Xcompiler", "-fvisibility=hidden"]
HEADERS = ("include", "targets/*/include")
LIBRARIES = ("lib64", "lib", "targets/*/lib", "lib/*-linux-gnu")


class Toolkit(NamedTuple):
    home: Path  # holds bin/nvcc
    libraries: Path  # the folder of the static CUDA runtime
    version: str  # such as "13.0"

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"


def find_toolkit(torch_cuda: str | None) -> Toolkit:
    """The toolkit for a torch built with that version of CUDA; LookupError says why there is none."""
    if not torch_cuda:
        raise LookupError("this torch is built without CUDA")
    found = toolkits()
    for toolkit in found:
        if toolkit.version.split(".")[0] == torch_cuda.split(".")[0]:
            return toolkit
    if not found:
        raise LookupError("no CUDA toolkit is here (bin/nvcc with headers and libcudart_static; CUDA_HOME names one)")
    raise LookupError(f"torch is built with CUDA {torch_cuda}, the toolkit in {found[0].home} is {found[0].version}")


def toolkits() -> list[Toolkit]:
    """All toolkits here, best first."""
    return [toolkit for home in homes() if (toolkit := toolkit_in(home))]


def homes() -> Iterator[Path]:
    """Where a toolkit may lie, best first."""
    yield from (Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name))
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parents[1]
        # a script that only calls the compiler lies elsewhere; the compiler itself knows its home
        if top := re.search(r"TOP=(.+)", said(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)):
            yield Path(top[1].strip()).resolve()
    yield Path("/usr/local/cuda")
    pip = importlib.util.find_spec("nvidia")
    for folder in (pip and pip.submodule_search_locations) or ():
        yield from sorted(Path(folder).glob("cu[0-9]*"), reverse=True)


def toolkit_in(home: Path) -> Toolkit | None:
    """The toolkit in that folder, if it is a whole one that works."""
    has_headers = any(True for folder in HEADERS for _ in home.glob(f"{folder}/cuda_runtime.h"))
    runtimes = [path for folder in LIBRARIES for path in home.glob(f"{folder}/libcudart_static.a")]
    nvcc = home / "bin" / "nvcc"
    version = re.search(r"release (\d+\.\d+)", said(nvcc, "--version")) if nvcc.is_file() else None
    return Toolkit(home, runtimes[0].parent, version[1]) if has_headers and runtimes and version else None


def said(*command: str | Path) -> str:
    """What a program prints; nothing where it does not run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
