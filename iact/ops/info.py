"""What was built here, and what each op runs on."""

import platform

import torch

from iact import __version__, ops
from iact.ops.registry import KERNEL_NAMES


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
    found = {}
    for device in ("CPU", "CUDA"):
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"iact::{name}", device)
        found[device] = KERNEL_NAMES.get((name, device), "kernel") if has_kernel else "PyTorch reference"
    return ", ".join(f"{device}: {backend}" for device, backend in found.items())
