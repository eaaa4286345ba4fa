"""Builds the compiled extension `iact._C`; everything else about the package stands in pyproject.toml.

`python setup.py build_ext` puts it beside the Python files. MAX_JOBS limits the compilers that run at once, DEBUG=1
builds for a debugger, CXX names the compiler. Without torch or a compiler there is no extension: the ops then run on
their plain-PyTorch references."""

import os
import shutil
from glob import glob

from setuptools import setup

OLDEST_TORCH = (2, 11)  # the extension uses torch's stable ABI as of this version: it loads in it and in later ones
BUILD_ALONE = "pip install --no-build-isolation . (or python setup.py build_ext) builds it"


def obstacle() -> str | None:
    """Says what keeps the extension from being built here, if anything does."""
    try:
        import torch
    except ImportError:
        return f"torch is not importable in this build; where torch is installed, {BUILD_ALONE}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"it needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, found {torch.__version__}"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler here ({compiler}; the environment variable CXX names another)"
    return None


def extension() -> dict:
    """The arguments of `setup` that build the extension."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    class Build(BuildExtension.with_options(use_ninja=is_ninja_available())):
        def finalize_options(self):
            self.inplace = self.inplace or "build_ext" in self.distribution.commands
            super().finalize_options()

    optimise = ["-O0", "-g"] if os.environ.get("DEBUG", "0") == "1" else ["-O3"]
    module = CppExtension(
        "iact._C",
        sorted(glob("csrc/*.cpp")),
        depends=sorted(glob("csrc/*.h")),
        py_limited_api=True,
        define_macros=[
            ("TORCH_TARGET_VERSION", f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"),
            ("IACT_BUILD", f'"torch {torch.__version__}, CPU kernels"'),
        ],
        # no flag here changes results; the last two let the compiler turn branches into selections and vectorise
        extra_compile_args=[*optimise, "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"],
    )
    limited_api = {"bdist_wheel": {"py_limited_api": "cp310"}}
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}, "options": limited_api}


reason = obstacle()
print(f"iact: not building the compiled extension: {reason}" if reason else "iact: building the extension for the CPU")
setup(**({} if reason else extension()))
