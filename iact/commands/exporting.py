"""`iact export`."""

from pathlib import Path

from iact.export import Exported, Format, NumberFormat, export_model
from iact.files import printable


def export(
    weights: Path,
    out: Path,
    format: Format = "onnx",
    opset: int = 19,
    decode: bool = False,
    precision: NumberFormat = "fp32",
) -> None:
    """Write a trained network for other runtimes, once its results were found to be PyTorch's.

    The file takes "pictures", float32 [B, 3, S, S]: faces cut to S px, RGB in 0..255; normalisation is inside. It gives
    "heatmaps" [B, K, H, W], or with --decode "landmarks" [B, K, 2] in px of the input and "scores" [B, K]. Its metadata
    say what else is needed. A torch-export program needs PyTorch alone; an aoti package is compiled for this machine,
    calls the kernels of iact, is loaded after `import iact.ops`, and takes its pictures for contiguous: it does not
    look.

    Args:
        weights: A weights file or a run folder.
        out: The file to write: .onnx, or .pt2 for the others.
        format: ONNX, a program of torch.export, or a package of AOTInductor.
        opset: Of ONNX; 19 or newer.
        decode: Give landmarks and scores instead of heatmaps.
        precision: Of an ONNX file. int8 takes its ranges from drawn faces: measure it on your own."""
    print(report(export_model(weights, out, format, opset=opset, decode=decode, precision=precision)))


def report(exported: Exported) -> str:
    """What was written, and how close it is to PyTorch: two lines."""
    about, size = exported.about, exported.path.stat().st_size / 1e6
    path, results = printable(exported.path), " and ".join(exported.outputs)
    side = about["input_size"]
    return (
        f"{path}: {size:.1f} MB, {about['precision']}, pictures [B, 3, {side}, {side}] to {results} "
        f"({about['layout']}, {about['num_landmarks']} landmarks)\n{exported.parity}"
    )
