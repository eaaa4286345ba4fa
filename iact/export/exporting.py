"""From trained weights to a file for other runtimes, checked before it is kept."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

from iact.checkpoint import load_weights
from iact.errors import InputError
from iact.export.deployed import Deployed, describe
from iact.export.parity import NumberFormat, Parity, Run, compare
from iact.files import write_atomically

Format = Literal["onnx", "torch-export", "aoti"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OLDEST_OPSET = 19  # the first with DeformConv


@dataclass(frozen=True)
class Exported:
    """A file that was written: its path, what it says of itself, and how close it is to PyTorch."""

    path: Path
    about: dict[str, str]
    outputs: tuple[str, ...]
    parity: Parity


def export_model(
    weights: Path,
    out: Path,
    format: Format = "onnx",
    *,
    opset: int = OLDEST_OPSET,
    decode: bool = False,
    precision: NumberFormat = "fp32",
) -> Exported:
    """Writes the network of a weights file or run folder for another runtime, once it was found to agree with PyTorch.

    The input is `pictures`, float32 [B, 3, S, S], RGB in 0..255: faces cut as the `Predictor` cuts them. The output is
    `heatmaps` float32 [B, K, S/stride, S/stride], or with `decode` `landmarks` [B, K, 2] in input px and `scores`
    [B, K]. B is free. `opset` is ONNX's; "fp16" and "int8" are for ONNX alone.

    InputError for weights or arguments of no use, for packages that are missing, and where the results differ."""
    _check(out, format, opset, precision)
    model, description = load_weights(weights)
    reference = Deployed(model, description.sigma, decode)
    about = {**describe(description), "precision": precision}
    with TemporaryDirectory() as folder, _only_errors():
        made = Path(folder, "model").with_suffix(SUFFIXES[format])
        run = _make(reference, about, made, format, opset, precision)
        parity = compare(run, reference, precision)
        if not parity.holds:
            raise InputError(f"{out}: not written, for the exported network is another one ({parity})")
        write_atomically(out, lambda path: path.write_bytes(made.read_bytes()))
    return Exported(out, about, reference.outputs, parity)


@contextmanager
def _only_errors() -> Iterator[None]:
    """Keeps exporters and compilers from logging what they do not fold, find or use: parity says what came of it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _make(deployed: Deployed, about: dict, path: Path, format: Format, opset: int, precision: NumberFormat) -> Run:
    """Writes the file, and opens it as its users will."""
    if format == "onnx":
        from iact.export.onnx_graph import open_onnx, save_onnx  # here: its packages are optional

        save_onnx(deployed, about, path, opset, precision)
        return open_onnx(path)
    from iact.export import programs  # here: it imports the compiler, which takes a second

    if format == "torch-export":
        programs.save_program(deployed, about, path)
        return programs.open_program(path)
    programs.save_package(deployed, about, path)
    return programs.open_package(path)


def _check(out: Path, format: Format, opset: int, precision: NumberFormat) -> None:
    for name, value, known in (("format", format, Format), ("precision", precision, NumberFormat)):
        if value not in get_args(known):
            raise InputError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")
    if out.suffix != SUFFIXES[format]:
        raise InputError(f"{out}: expected a name that ends in {SUFFIXES[format]} for {format}")
    if format != "onnx" and precision != "fp32":
        raise InputError(f"precision: expected fp32 for {format}, got {precision}")
    if format == "onnx" and opset < OLDEST_OPSET:
        raise InputError(f"opset: expected {OLDEST_OPSET} or more (older ones have no DeformConv), got {opset}")
    missing = [name for name in ONNX_PACKAGES if format == "onnx" and find_spec(name) is None]
    if missing:
        raise InputError(f"format: onnx needs packages that are not installed: pip install {' '.join(missing)}")
