"""The `iact` operator library: schemas, and the compiled extension that may stand behind them.

An op is defined here by its schema and its plain-PyTorch reference, which serves every device that no kernel serves.
`iact._C`, where it was built, registers faster kernels for the same schemas; importing never builds, warns or fails."""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

LIBRARY = torch.library.Library("iact", "DEF")
KERNEL_NAMES: dict[tuple[str, str], str] = {}  # (op, device): what serves it, for `iact info`; others are "kernel"
COMPILED: set[tuple[str, str]] = set()  # those of them that are only there where the extension brings them
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def define(schema: str, reference: Callable, fake: Callable) -> None:
    """Adds the op of that schema: `reference` computes it (below autograd), `fake` gives shapes, dtypes and strides."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=_TAGS)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"iact::{name}", fake, lib=LIBRARY)


def add_kernel(name: str, device: str, kernel: Callable, words: str) -> None:
    """Adds a kernel that Python launches, for "CPU" or "CUDA"; `words` say in `iact info` what it is."""
    LIBRARY.impl(name, kernel, device)
    KERNEL_NAMES[name, device] = words


def cuda_kernels_are_built() -> bool:
    """Whether the extension has brought the namespace iact_cuda."""
    return hasattr(torch.ops.iact_cuda, "runs_on")


@cache
def kernels_run_on(device: torch.device) -> bool:
    """Whether the CUDA kernels are built, and for GPUs like that one."""
    return cuda_kernels_are_built() and torch.ops.iact_cuda.runs_on(device.index or 0)


def add_cuda_kernel(
    name: str, reference: Callable, fits: Callable[..., bool] = lambda *_: True, words: str = "kernel"
) -> None:
    """Adds the CUDA kernel of the op, of the same name and schema in iact_cuda. The reference serves arguments that do
    not fit, and GPUs that it is not built for."""

    def serve(*arguments):
        serves = fits(*arguments) and kernels_run_on(arguments[0].device)
        return (getattr(torch.ops.iact_cuda, name) if serves else reference)(*arguments)

    add_kernel(name, "CUDA", serve, words)
    COMPILED.add((name, "CUDA"))


def differentiate(name: str, backward: Callable, setup_context: Callable) -> None:
    """Adds the op's backward formula."""
    torch.library.register_autograd(f"iact::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def refuse_second_derivative(name: str) -> None:
    """Lets the gradient of an op, itself the op of that name, refuse to be differentiated: PyTorch would go on with a
    warning, and without its share."""

    def refuse(ctx, *_):
        raise NotImplementedError(f"iact::{name.removesuffix('_backward')} has no second derivative")

    torch.library.register_autograd(f"iact::{name}", refuse, lib=LIBRARY)


def autocast(name: str, cast: Callable) -> None:
    """Adds the op's autocast rule: `cast(dtype, *arguments)` gives the arguments in the precisions the op wants."""
    operator = getattr(torch.ops.iact, name).default
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*arguments, device=device, excluded=excluded, **keywords):
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return operator(*cast(torch.get_autocast_dtype(device), *arguments), **keywords)

        LIBRARY.impl(name, run, key)


def load_extension() -> str:
    """Loads `iact._C` once and says how it went, in words for `iact info`.

    It is looked for beside this very package: an editable install of another checkout must not lend its own."""
    folder = Path(__file__).resolve().parents[1]
    built = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_C{suffix}").is_file()]
    if not built:
        return "not built (run: python setup.py build_ext)"
    try:
        extension = ctypes.CDLL(str(built[0]))  # loading it is what registers its kernels
        extension.iact_build.restype = ctypes.c_char_p
        return f"built with {extension.iact_build().decode()}"
    except (OSError, AttributeError) as error:  # damaged, or not for this machine: the references serve
        return f"built, but it does not load here ({error}); run: python setup.py build_ext"
