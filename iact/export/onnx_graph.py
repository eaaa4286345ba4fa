"""The network as an ONNX graph, and what runs it. Imported only where the packages of the extra "export" are there.

The deformable projections become native `DeformConv` nodes, three for each attention block: their offsets are, as ours,
(dy, dx) for each kernel tap in turn. They compute in float32 in graphs of any precision, as do softmax and decoding:
onnxruntime has no other `DeformConv` on the CPU, and float16 knows a position of 16 px to 1/64 px only."""

import copy
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import opset19 as op
from onnxscript.optimizer import optimize

from iact.errors import InputError
from iact.export.deployed import PICTURES, Deployed, example
from iact.export.parity import NumberFormat
from iact.export.quantise import quantise

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
FOLDED = 1 << 30  # elements: a weight of any size is cut into those of q, k and v once, here


def save_onnx(deployed: Deployed, about: dict[str, str], path: Path, opset: int, precision: NumberFormat) -> None:
    """Writes the graph, for batches of any size, with `about` as its metadata. InputError for an unknown opset."""
    if precision == "fp16":
        deployed = copy.deepcopy(deployed).half()
    graph = _translate(deployed, opset)
    if precision == "int8":
        graph = quantise(graph, deployed.network.config.input_size)
    onnx.helper.set_model_props(graph, about)
    path.write_bytes(graph.SerializeToString())


def _translate(deployed: Deployed, opset: int) -> onnx.ModelProto:
    with torch.no_grad():
        program = torch.onnx.export(
            deployed,
            (example(deployed),),
            input_names=[PICTURES],
            output_names=list(deployed.outputs),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            custom_translation_table=TRANSLATIONS,
        )
        optimize(program.model, onnx_shape_inference=False, input_size_limit=FOLDED, output_size_limit=FOLDED)
    if program.model.opset_imports[""] != opset:
        raise InputError(f"opset: expected one that torch {torch.__version__} can export to, got {opset}")
    ClearMetadataAndDocStringPass()(program.model)  # file names and source lines of the machine that it was made on
    program.model.producer_name = "iact"
    return onnx_ir.to_proto(program.model)


def open_onnx(
    path: Path, threads: int = 0, providers: tuple[str, ...] = ("CPUExecutionProvider",)
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """A session of onnxruntime, to be called with pictures; 0 threads leave the number to it. InputError where it
    cannot run the file, or lacks a provider."""
    for provider in set(providers) - set(onnxruntime.get_available_providers()):  # it would take the CPU without a word
        raise InputError(f"onnxruntime {onnxruntime.__version__} has no {provider} here")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # its exceptions have no base class of their own
        words = str(error).strip().partition("\n")[0]
        raise InputError(f"{path}: onnxruntime {onnxruntime.__version__} cannot run it ({words})") from None
    return lambda pictures: tuple(map(torch.from_numpy, session.run(None, {PICTURES: pictures.numpy()})))


def _deform_attention(x, offset, weight, bias, heads: int):
    """`iact::deform_attention`: x [B, C, H, W] to [B, H*W, C]."""
    channels, height, width = x.shape[1:]
    split = op.Constant(value_ints=[0, heads, channels // heads, height * width])
    half, shared = x.dtype == HALF, offset.shape[1] == 18
    x, offset, weight, bias = (_cast(value, FLOAT, half) for value in (x, offset, weight, bias))
    projected = []
    for i in range(3):
        taps = offset if shared else _part(offset, i, 18, axis=1)
        part, shift = (_part(value, i, channels, axis=0) for value in (weight, bias))
        result = op.DeformConv(x, part, taps, shift, group=heads, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        projected.append(op.Reshape(_cast(result, HALF, half), split))
    query, key, value = projected  # [B, heads, C / heads, H * W]
    query, value = (op.Transpose(t, perm=[0, 1, 3, 2]) for t in (query, value))
    attended, _ = _attend(query, key, value, (channels // heads) ** -0.5, half)
    merged = op.Constant(value_ints=[0, height * width, channels])
    return op.Reshape(op.Transpose(attended, perm=[0, 2, 1, 3]), merged)


def _attention(q, k, v, scale: float | None = None):
    """`iact::attention`: [B, heads, N, D] each, to the output and the logsumexp of the scores."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return _attend(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, scale, q.dtype == HALF)


def _attend(query, key, value, scale: float, half: bool):
    """Queries [B, heads, N, D], keys [B, heads, D, N] and values [B, heads, N, D] to the output and the logsumexp."""
    scores = op.MatMul(op.Mul(query, _cast(op.Constant(value_float=scale), HALF, half)), key)
    wide = _cast(scores, FLOAT, half)
    logsumexp = op.ReduceLogSumExp(wide, op.Constant(value_ints=[-1]), keepdims=0)  # nothing uses it: it is dropped
    return op.MatMul(_cast(op.Softmax(wide, axis=-1), HALF, half), value), logsumexp


def _cast(value, to: int, half: bool):
    """In that type where the graph is in float16; as it is elsewhere."""
    return op.Cast(value, to=to) if half else value


def _part(value, i: int, size: int, axis: int):
    """The i-th part of that size."""
    return op.Slice(value, *(op.Constant(value_ints=[number]) for number in (i * size, (i + 1) * size, axis)))


TRANSLATIONS = {
    torch.ops.iact.deform_attention.default: _deform_attention,
    torch.ops.iact.attention.default: _attention,
}
