"""What nvcc makes of kernels, without a GPU: registers, memory and machine instructions of each.

`python tests/cuda_compiler.py` prints them for all kernels of csrc/, or for the .cu files named."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from shutil import which

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
from toolchain import NVCC_FLAGS, Toolkit, toolkits  # noqa: E402

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
CACHE = ROOT / "build" / "kernels"
_FUNCTION = re.compile(
    r"Function properties for (?P<name>\S+)\s+(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r"(?:\s+ptxas info\s+: Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?)?"
)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@dataclass
class Kernel:
    """What one kernel takes on one architecture: local memory in bytes per thread, static shared memory per block."""

    name: str  # with template arguments, without namespaces
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int
    opcodes: Counter[str] = field(repr=False)  # such as {"LDG.E.128": 2}, without padding

    def __str__(self) -> str:
        local = f"{self.stack} bytes of stack, {self.spills} spilled"
        return f"{self.name} on {self.architecture}: {self.registers} registers, {self.shared} bytes shared, {local}"

    @property
    def instructions(self) -> int:
        return self.opcodes.total()


def missing() -> str | None:
    """The tool that the functions below lack here, if one does."""
    tools = {"nvcc": toolkit(), "cuobjdump": cuobjdump(), "c++filt": which("c++filt")}
    return next((name for name, found in tools.items() if not found), None)


@cache
def toolkit() -> Toolkit | None:
    """The first toolkit here, whatever torch is built with."""
    return next(iter(toolkits()), None)


@cache
def cuobjdump() -> str | None:
    """The disassembler that comes with Triton, or else one on the PATH."""
    folders = [Path(folder) / "triton/backends/nvidia/bin" for folder in sys.path]
    return which("cuobjdump", path=os.pathsep.join(map(str, folders))) or which("cuobjdump")


def kernels(sources: list[Path], architectures: tuple[str, ...] = ARCHITECTURES) -> list[Kernel]:
    """All kernels of the .cu files, for each architecture."""
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [kernel for found in pool.map(lambda job: _kept(*job), jobs) for kernel in found]


def _kept(source: Path, architecture: str) -> list[Kernel]:
    """The kernels of one file, from build/ if nothing that they come from has changed."""
    flags = ["-O3", *cpp_extension.COMMON_NVCC_FLAGS, *NVCC_FLAGS, f"-arch={architecture}"]
    key = hashlib.sha256(repr((toolkit(), torch.__version__, flags)).encode())
    for path in [Path(__file__), *_closure(source)]:
        key.update(path.read_bytes())
    kept = CACHE / f"{key.hexdigest()[:24]}.json"
    if not kept.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")  # another process may be doing the same
        part.write_text(json.dumps([vars(kernel) for kernel in _compiled(source, architecture, flags)]))
        part.replace(kept)
    return [Kernel(**fields | {"opcodes": Counter(fields["opcodes"])}) for fields in json.loads(kept.read_text())]


def _compiled(source: Path, architecture: str, flags: list[str]) -> list[Kernel]:
    folders = [f"-I{folder}" for folder in cpp_extension.include_paths()]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "cubin")
        log = _run(toolkit().nvcc, *flags, *folders, "-Xptxas", "-v", "-cubin", source, "-o", cubin)
        _, *parts = re.split(r"Function : (\S+)", _run(cuobjdump(), "-sass", cubin))
    listings = dict(zip(parts[::2], parts[1::2], strict=True))
    found = [match for match in _FUNCTION.finditer(log) if match["registers"]]  # others are functions that kernels call
    names = demangled([match["name"] for match in found])
    return [
        _kernel(name, architecture, match, listings[match["name"]]) for name, match in zip(names, found, strict=True)
    ]


def _kernel(name: str, architecture: str, said: re.Match, listing: str) -> Kernel:
    return Kernel(
        name,
        architecture,
        registers=int(said["registers"]),
        shared=int(said["shared"] or 0),
        stack=int(said["stack"]),
        spills=int(said["stores"]) + int(said["loads"]),
        opcodes=Counter(code for code in _INSTRUCTION.findall(listing) if code != "NOP"),
    )


def demangled(names: list[str]) -> list[str]:
    """Kernel names as in `wing_kernel<float, float, 4, true>`."""
    said = _run("c++filt", "--no-params", *names) if names else ""
    return [re.sub(r"\(anonymous namespace\)::|\biact::|^void ", "", line) for line in said.splitlines()]


def _closure(source: Path) -> list[Path]:
    """The file and all files of its folder that it includes, in a fixed order."""
    found = [source]
    for path in found:
        names = re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
        found += [new for name in names if (new := path.parent / name).is_file() and new not in found]
    return found


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stdout}")
    return done.stdout


def report(found: list[Kernel]) -> Iterator[str]:
    """A line for each kernel: the most that it takes on any architecture."""
    for name in sorted({kernel.name for kernel in found}):
        same = [kernel for kernel in found if kernel.name == name]
        registers, shared = max(kernel.registers for kernel in same), max(kernel.shared for kernel in same)
        local, instructions = max(kernel.stack for kernel in same), max(kernel.instructions for kernel in same)
        yield f"{registers:4d} registers {shared:6d} shared {local:5d} local {instructions:6d} instructions  {name}"


if __name__ == "__main__":
    print(*report(kernels([Path(name) for name in sys.argv[1:]] or sorted((ROOT / "csrc").glob("*.cu")))), sep="\n")
