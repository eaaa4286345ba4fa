"""Products in eight bits, by onnxruntime's own quantiser. Imported only where the extra "export" is installed."""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from iact.export.deployed import PICTURES
from iact.export.parity import draw_pictures

FACES = 64  # that the ranges of activations are taken from
SEED = 64  # no picture of the parity check is among them


def quantise(graph: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The graph with convolutions and matrix products of int8 weights (a scale for each output) and uint8 activations,
    whose ranges are those of drawn faces; `size` is the side of the input in px. `DeformConv`, which has no such
    kernel, softmax, normalisation and decoding stay in float32."""
    with TemporaryDirectory() as folder:
        plain, prepared, quantised = (Path(folder, name) for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(graph, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _DrawnFaces(size),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantised)


class _DrawnFaces(CalibrationDataReader):
    def __init__(self, size: int):
        self.pictures = iter(draw_pictures(FACES, size, SEED).split(1))

    def get_next(self) -> dict | None:
        picture = next(self.pictures, None)
        return None if picture is None else {PICTURES: picture.numpy()}
