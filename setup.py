"""Builds the compiled extension `iact._C`; everything else about the package stands in pyproject.toml.

`python setup.py build_ext` puts it beside the Python files: the CPU kernels, and the CUDA kernels too where torch is
built with CUDA and a toolkit of the same major version is found, GPU or not. TORCH_CUDA_ARCH_LIST names their
architectures; FORCE_CUDA=1 makes it an error if they cannot be built, FORCE_CUDA=0 leaves them out. MAX_JOBS limits the
compilers that run at once, DEBUG=1 builds for a debugger, CXX names the compiler. Without torch or a compiler there is
no extension: the ops then run on their plain-PyTorch references."""

import os
import re
import shutil
import sys
from glob import glob

from setuptools import setup

sys.path.insert(0, "csrc")
from toolchain import ARCHITECTURES, NVCC_FLAGS, OLDEST_TORCH, STABLE_ABI, Toolkit, find_toolkit  # noqa: E402

BUILD_ALONE = "pip install --no-build-isolation . (or python setup.py build_ext) builds it"
FORCE_CUDA = os.environ.get("FORCE_CUDA")
OPTIMISE = ["-O0", "-g"] if os.environ.get("DEBUG", "0") == "1" else ["-O3"]


def obstacle() -> str | None:
    """Says what keeps the extension from being built here, if anything does."""
    try:
        import torch
    except ImportError as error:
        return f"torch is not importable in this build ({error}); where torch is installed, {BUILD_ALONE}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"it needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, found {torch.__version__}"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler here ({compiler}; the environment variable CXX names another)"
    return None


def do_without(what: str, reason: object) -> None:
    """Says what is not built and why; an error if the CUDA kernels are demanded."""
    if FORCE_CUDA == "1":
        sys.exit(f"iact: FORCE_CUDA=1 demands the CUDA kernels, and they cannot be built: {reason}")
    print(f"iact: not building {what}: {reason}")


def cuda_toolkit() -> Toolkit | None:
    """What compiles the CUDA kernels, if they are to be built and can be."""
    import torch

    try:
        if FORCE_CUDA == "0":
            raise LookupError("FORCE_CUDA=0")
        toolkit = find_toolkit(torch.version.cuda)
    except LookupError as reason:
        do_without("the CUDA kernels", reason)
        return None
    os.environ["CUDA_HOME"] = str(toolkit.home)  # torch's build helpers read both, this one on import
    os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    return toolkit


def architectures() -> str:
    """What TORCH_CUDA_ARCH_LIST asks for, as in "sm_80, sm_90, PTX 90"."""
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    try:
        flags = " ".join(_get_cuda_arch_flags()).replace("code=compute_", "code=PTX ")
    except (ValueError, IndexError) as error:
        sys.exit(f"iact: TORCH_CUDA_ARCH_LIST={os.environ['TORCH_CUDA_ARCH_LIST']} is not understood: {error}")
    return ", ".join(re.findall(r"code=(sm_\w+)", flags) + re.findall(r"code=(PTX \w+)", flags))


def cuda_arguments(toolkit: Toolkit) -> dict:
    """How the CUDA kernels are linked.

    The CUDA runtime is linked in and torch's CUDA libraries are not, so that the extension loads without them. Where
    they exist it reaches them through libtorch, which the linker would drop: nothing in libtorch itself is used."""
    return {
        "library_dirs": [str(toolkit.libraries)],
        "libraries": ["cudart_static", "dl", "rt", "pthread"],
        "extra_link_args": ["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"],
    }


def threads_per_compiler(sources: int) -> int:
    """How many architectures one call of nvcc compiles at once: ninja already runs one call per source and core."""
    jobs = os.environ.get("MAX_JOBS", "")
    cores = int(jobs) if jobs.isdigit() else os.cpu_count() or 1
    return max(1, cores // max(1, sources))


def compile_flags(kernels: str, cuda_sources: list[str]) -> dict[str, list[str]]:
    """For the C++ compiler and for nvcc."""
    import torch

    built = f'-DIACT_BUILD="torch {torch.__version__}, {kernels}"'
    # no flag here changes results; the last two let the compiler turn branches into selections and vectorise
    cxx = ["-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    return {
        "cxx": [*OPTIMISE, STABLE_ABI, built, *cxx],
        "nvcc": [*OPTIMISE, *NVCC_FLAGS, f"--threads={threads_per_compiler(len(cuda_sources))}"],
    }


def extension(toolkit: Toolkit | None) -> dict:
    """The arguments of `setup` that build the extension."""
    kernels = f"CPU and CUDA {toolkit.version} kernels ({architectures()})" if toolkit else "CPU kernels"
    print(f"iact: building the extension: {kernels}")
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    class Build(BuildExtension.with_options(use_ninja=is_ninja_available())):
        def finalize_options(self):
            self.inplace = self.inplace or "build_ext" in self.distribution.commands
            super().finalize_options()

    cuda_sources = sorted(glob("csrc/*.cu")) if toolkit else []
    module = CppExtension(
        "iact._C",
        sorted(glob("csrc/*.cpp")) + cuda_sources,
        depends=sorted(glob("csrc/*.h")),
        py_limited_api=True,
        extra_compile_args=compile_flags(kernels, cuda_sources),
        **(cuda_arguments(toolkit) if toolkit else {}),
    )
    limited_api = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}, "options": limited_api}


if reason := obstacle():
    do_without("the compiled extension", reason)
    setup()
else:
    setup(**extension(cuda_toolkit()))
