"""What was built here, and what each op runs on."""

import platform

import torch

from iact import __version__, ops
from iact.ops.registry import COMPILED, KERNEL_NAMES, cuda_kernels_are_built, kernels_run_on

REFERENCE = "PyTorch reference"


def report() -> dict[str, str]:
    """What to print for "which iact is this, and is it the fast one": versions, the extension, each op's backends."""
    facts = {
        "iact": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} ({torch.get_num_threads()} CPU threads; GPU: {gpu()})",
        "compiled extension": ops.EXTENSION,
    }
    return facts | {f"op {name}": backends(name) for name in names()}


def gpu() -> str:
    """The current GPU and its architecture, which has to be among those that the kernels are built for."""
    if not torch.cuda.is_available():
        return "none usable"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def names() -> list[str]:
    """The ops of the package, by name."""
    operators = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("iact::") for name in operators if name.startswith("iact::"))


def backends(name: str) -> str:
    """What serves the op on each device, whether or not that device is here: its kernel, or its PyTorch reference."""
    return ", ".join(f"{device}: {_backend(name, device)}" for device in ("CPU", "CUDA"))


def _backend(name: str, device: str) -> str:
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"iact::{name}", device):
        return REFERENCE
    if (name, device) in COMPILED:
        if not cuda_kernels_are_built():
            return REFERENCE
        if torch.cuda.is_available() and not kernels_run_on(torch.device("cuda", torch.cuda.current_device())):
            return f"{REFERENCE} (the kernels are not built for this GPU)"
    return KERNEL_NAMES.get((name, device), "kernel")
