"""The network as files of PyTorch itself: a program of `torch.export`, and a package that AOTInductor compiled."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim, ExportedProgram

from iact.errors import InputError
from iact.export.deployed import Deployed, example
from iact.ops.reference.attention import attention
from iact.ops.reference.deform import deform_qkv

ABOUT = "iact.json"  # what a program says of itself, among its extra files


def save_program(deployed: Deployed, about: dict[str, str], path: Path) -> None:
    """Writes a program that `torch.export.load` reads where this package is not installed: its ops are PyTorch's own
    operators, and slower than the kernels. `about` is JSON in its extra file `iact.json`."""
    ours = {
        torch.ops.iact.deform_attention.default: _deform_attention,
        torch.ops.iact.attention.default: _attention,
    }
    program = _trace(deployed).run_decompositions(ours)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of files of the machine that it was made on
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})


def save_package(deployed: Deployed, about: dict[str, str], path: Path) -> None:
    """Writes machine code for the processor of this machine, which `torch._inductor.aoti_load_package` reads; its
    `get_metadata()` holds `about`. It calls the ops of this package: `import iact.ops` has to come first. It takes the
    pictures for contiguous and of float32, and does not look.

    InputError where there is no C++ compiler."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError("format: aoti needs a C++ compiler, and there is none here (CXX names one)") from None
    options = {"aot_inductor.metadata": about}
    with torch.no_grad():
        aoti_compile_and_package(_trace(deployed), package_path=str(path), inductor_configs=options)


def open_program(path: Path) -> Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]:
    """What `save_program` wrote, to be called with pictures."""
    return torch.export.load(path).module()


def open_package(path: Path) -> Callable[[Tensor], Tensor | list[Tensor]]:
    """What `save_package` wrote, to be called with pictures."""
    return aoti_load_package(str(path))


def _trace(deployed: Deployed) -> ExportedProgram:
    """The program for batches of any size."""
    with torch.no_grad():
        return torch.export.export(deployed, (example(deployed),), dynamic_shapes=({0: Dim("batch")},))


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    _, logsumexp = attention(q, k, v, scale)  # which no inference reads: it falls out of the program
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale), logsumexp


def _deform_attention(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    q, k, v = deform_qkv(x, offset, weight, bias, heads)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
