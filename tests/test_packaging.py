"""The package with its extension, without it, and with a broken one, each in a copy of the tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iact import ops

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
from toolchain import find_toolkit  # noqa: E402

MAPS = "torch.full((2, 3, 4, 4), 0.7), torch.full((2, 3, 4, 4), 0.4)"
LOSS = f"import torch; from iact import ops; print(ops.smooth_wing_loss({MAPS}).item())"
SCALE = """
from iact.ops import registry
registry.define("scale(Tensor x) -> Tensor", lambda x: x, lambda x: x)
registry.add_cuda_kernel("scale", lambda x: x)
"""
STATE = "from iact.ops import info; print(info.report()['compiled extension']); print(info.backends('wing_loss'))"
# the lines that setup.py prints for a torch built with another CUDA; nothing is compiled
SETUP = (
    "import sys, torch; torch.version.cuda = {}; sys.argv = ['setup.py', '--version']; exec(open('setup.py').read())"
)
CUDA_SOURCE = """
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "factor.h"
#include "stream.h"

using torch::stable::Tensor;

__global__ void scale_kernel(const float* from, float* to) { to[threadIdx.x] = kFactor * from[threadIdx.x]; }

Tensor scale(const Tensor& from) {
  const torch::stable::accelerator::DeviceGuard guard(from.get_device_index());
  Tensor to = torch::stable::empty_like(from);
  scale_kernel<<<1, from.numel(), 0, iact::current_stream(from.get_device_index())>>>(
      static_cast<const float*>(from.const_data_ptr()), static_cast<float*>(to.mutable_data_ptr()));
  iact::check_launch("scale_kernel");
  return to;
}

STABLE_TORCH_LIBRARY(iact_cuda, library) { library.def("scale(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CUDA, library) { library.impl("scale", TORCH_BOX(&scale)); }
"""
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler here")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, with nothing built."""
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("iact", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("iact\n")
    return tmp_path


def run(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python in the tree."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TORCH_CUDA_ARCH_LIST")
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=inherited | environment, capture_output=True, text=True, timeout=600
    )


def python(tree: Path, *arguments: str, **environment: str) -> str:
    """What Python prints when it runs in the tree; it has to succeed."""
    done = run(tree, *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_loss_is_right(tree: Path) -> None:
    expected = ops.smooth_wing_loss(torch.full((2, 3, 4, 4), 0.7), torch.full((2, 3, 4, 4), 0.4)).item()
    assert float(python(tree, "-c", LOSS)) == pytest.approx(expected, rel=1e-6)


def objects(tree: Path) -> dict[str, int]:
    """When each source was last compiled."""
    return {path.stem: path.stat().st_mtime_ns for path in tree.glob("build/**/*.o")}


@needs_compiler
def test_build_ext_builds_in_place_and_again_only_for_changed_sources(tree):
    said = python(tree, "setup.py", "build_ext", DEBUG="1", FORCE_CUDA="0")
    assert said.count("iact: not building the CUDA kernels: FORCE_CUDA=0\n") == 1
    assert said.count("iact: building the extension: CPU kernels\n") == 1
    (library,) = (tree / "iact").glob("_C*.so")
    assert library.name == "_C.abi3.so"
    extension, backends = python(tree, "-c", STATE).splitlines()
    assert extension == f"built with torch {torch.__version__}, CPU kernels"
    assert backends == "CPU: kernel, CUDA: PyTorch reference"
    assert_loss_is_right(tree)
    assert_stable_abi_only(library)

    built = objects(tree)
    assert built
    python(tree, "setup.py", "build_ext", DEBUG="1", FORCE_CUDA="0")
    assert built == objects(tree)


def assert_stable_abi_only(library: Path) -> None:
    """One binary loads in several torch versions only if it needs no C++ symbol of torch, and nothing of CUDA."""
    if shutil.which("nm"):
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        needed = {line.split()[-1]: line.split()[-2] for line in listing.stdout.splitlines()}
        assert needed["aoti_torch_library_init_impl"] == "U"
        assert needed.pop("aoti_torch_get_current_cuda_stream", "w") == "w"  # may be missing
        of_torch = ("_ZN2at", "_ZNK2at", "_ZN5torch", "_ZN3c10", "_ZNK3c10")
        of_cuda = ("cuda", "__cuda", "cu", "aoti_torch_cuda", "torch_get_current_cuda", "torch_c10_cuda")
        assert not [name for name in needed if name.startswith(of_torch + of_cuda)]
    if shutil.which("readelf"):
        listing = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
        assert "libtorch_cpu.so" in listing.stdout
        assert not [name for name in ("cuda", "cudart", "nvrtc", "torch_python") if f"lib{name}" in listing.stdout]


@pytest.mark.skipif(not (ROOT / "iact" / "_C.abi3.so").is_file(), reason="the extension is not built here")
def test_the_extension_of_this_checkout_loads_without_cuda_too():
    assert_stable_abi_only(ROOT / "iact" / "_C.abi3.so")


@pytest.fixture
def tree_with_cuda(tree) -> Path:
    """A copy of the sources with one small CUDA kernel in place of all others."""
    try:
        find_toolkit(torch.version.cuda)
    except LookupError as reason:
        pytest.skip(str(reason))
    for path in [*tree.glob("csrc/*.cpp"), *tree.glob("csrc/*.cu")]:
        if path.name not in ("build.cpp", "runs_on.cu"):
            path.unlink()
    (tree / "csrc" / "scale.cu").write_text(CUDA_SOURCE)
    (tree / "csrc" / "factor.h").write_text("constexpr float kFactor = 2;\n")
    return tree


@needs_compiler
def test_cuda_kernels_are_built_with_or_without_a_gpu(tree_with_cuda):
    version = find_toolkit(torch.version.cuda).version
    said = python(tree_with_cuda, "setup.py", "build_ext", TORCH_CUDA_ARCH_LIST="9.0+PTX", FORCE_CUDA="1", DEBUG="1")
    kernels = f"CPU and CUDA {version} kernels (sm_90, PTX 90)"
    assert said.count(f"iact: building the extension: {kernels}\n") == 1
    (library,) = (tree_with_cuda / "iact").glob("_C*.so")
    assert library.name == "_C.abi3.so"
    assert_stable_abi_only(library)
    extension, backends = python(tree_with_cuda, "-c", SCALE + STATE.replace("wing_loss", "scale")).splitlines()
    assert extension == f"built with torch {torch.__version__}, {kernels}"
    assert backends.startswith("CPU: PyTorch reference, CUDA: " + ("" if torch.cuda.is_available() else "kernel"))

    built = objects(tree_with_cuda)
    (tree_with_cuda / "csrc" / "factor.h").write_text("constexpr float kFactor = 3;\n")
    python(tree_with_cuda, "setup.py", "build_ext", TORCH_CUDA_ARCH_LIST="9.0+PTX", DEBUG="1")
    assert [name for name, time in objects(tree_with_cuda).items() if time != built[name]] == ["scale"]


@needs_compiler
def test_a_torch_for_the_cpu_gets_the_cpu_kernels(tree):
    said = python(tree, "-c", SETUP.format(None))
    assert "iact: not building the CUDA kernels: this torch is built without CUDA\n" in said
    assert "iact: building the extension: CPU kernels\n" in said


@needs_compiler
def test_a_toolkit_of_another_major_version_is_left_alone(tree_with_cuda):
    said = python(tree_with_cuda, "-c", SETUP.format("'99.1'"))
    assert "iact: not building the CUDA kernels: torch is built with CUDA 99.1, the toolkit in " in said
    assert "iact: building the extension: CPU kernels\n" in said


@needs_compiler
def test_cuda_kernels_that_are_demanded_and_cannot_be_built_are_an_error(tree):
    done = run(tree, "-c", SETUP.format(None), FORCE_CUDA="1")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "iact: FORCE_CUDA=1 demands the CUDA kernels, and they cannot be built: this torch is built without CUDA"
    )


def test_unknown_architectures_are_an_error(tree_with_cuda):
    done = run(tree_with_cuda, "setup.py", "--version", TORCH_CUDA_ARCH_LIST="9.0;Pentium")
    assert done.returncode != 0
    assert "iact: TORCH_CUDA_ARCH_LIST=9.0;Pentium is not understood" in done.stderr.splitlines()[-1]


def plant_toolkit(home: Path, libraries: str = "lib64") -> Path:
    """A folder that looks like a toolkit with CUDA 13.7; returns its compiler."""
    for path in (f"{libraries}/libcudart_static.a", "include/cuda_runtime.h", "bin/nvcc"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(f"#!/bin/sh\necho 'release 13.7, V13.7.1'\necho '#$ TOP={home}/bin/..'\n")
    (home / "bin" / "nvcc").chmod(0o755)
    return home / "bin" / "nvcc"


def found_toolkits(tree: Path, **environment: str) -> list[str]:
    """The homes of the toolkits that are found in that environment, with an empty PATH if it names none."""
    code = "import toolchain; print(*(t.home for t in toolchain.toolkits() if t.version == '13.7'))"
    return python(tree / "csrc", "-c", code, **{"PATH": "", "CUDA_HOME": "", "CUDA_PATH": ""} | environment).split()


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA is built on Linux only")
def test_a_toolkit_is_found_where_it_may_be(tree):
    home, scripts = tree / "cuda", tree / "scripts"
    nvcc = plant_toolkit(home)
    scripts.mkdir()
    (scripts / "nvcc").write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    (scripts / "nvcc").chmod(0o755)
    for environment in ({"CUDA_HOME": str(home)}, {"CUDA_PATH": str(home)}, {"PATH": str(home / "bin")}):
        assert found_toolkits(tree, **environment)[:1] == [str(home)]
    assert found_toolkits(tree, PATH=str(scripts)) == [str(home)]  # a script that calls the compiler
    assert found_toolkits(tree) == []

    plant_toolkit(tree / "packages" / "nvidia" / "cu13", "lib")  # as pip lays it out
    assert found_toolkits(tree, PYTHONPATH=str(tree / "packages")) == [str(tree / "packages" / "nvidia" / "cu13")]

    (home / "include" / "cuda_runtime.h").unlink()
    assert found_toolkits(tree, CUDA_HOME=str(home), PATH=str(scripts)) == []  # half a toolkit is none


def test_references_run_where_nothing_was_built(tree):
    extension, backends = python(tree, "-c", STATE).splitlines()
    assert extension == "not built (run: python setup.py build_ext)"
    assert backends == "CPU: PyTorch reference, CUDA: PyTorch reference"
    assert_loss_is_right(tree)


def test_info_names_kernels_that_python_launches(tree):
    code = """
from iact.ops import info, registry
registry.define("planted(Tensor x) -> Tensor", lambda x: x, lambda x: x)
registry.add_kernel("planted", "CUDA", lambda x: x, "Triton kernel")
print(info.backends("planted"))"""
    assert python(tree, "-c", code) == "CPU: PyTorch reference, CUDA: Triton kernel\n"


def test_a_broken_extension_is_reported_and_replaced_by_the_references(tree):
    (tree / "iact" / "_C.abi3.so").write_bytes(b"\x7fELF and then nothing")
    extension, backends = python(tree, "-c", STATE).splitlines()
    assert extension.startswith("built, but it does not load here") and "python setup.py build_ext" in extension
    assert backends.startswith("CPU: PyTorch reference")
    assert_loss_is_right(tree)


def test_without_a_compiler_one_line_says_so_and_the_build_succeeds(tree):
    said = python(tree, "setup.py", "build_ext", CXX="no-such-compiler")
    assert said.count("not building the compiled extension: there is no C++ compiler here (no-such-compiler") == 1
    assert not list(tree.rglob("*.so"))


def test_without_torch_a_wheel_of_pure_python_is_built(tree):
    hide = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'bdist_wheel']; exec(open('setup.py').read())"
    )
    said = python(tree, "-c", hide)
    assert said.count("not building the compiled extension: torch is not importable in this build") == 1
    assert [path.name for path in (tree / "dist").iterdir()] == ["iact-0.1.0-py3-none-any.whl"]
