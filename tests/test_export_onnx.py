"""ONNX: the ops as native nodes, whole networks in onnxruntime, the precisions."""

import numpy as np
import pytest
import torch
from small_export import shift_samples, small_network
from small_training import MINIATURE

from iact import ops
from iact.export import Deployed
from iact.export.parity import compare, draw_pictures
from iact.model import IACT

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from dataclasses import replace  # noqa: E402

from iact.export.onnx_graph import TRANSLATIONS, open_onnx, save_onnx  # noqa: E402

ABOUT = {"layout": "wflw"}


class Op(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *tensors):
        return self.call(*tensors)


def through_onnx(call, *tensors):
    """The nodes' types, and what onnxruntime computes."""
    program = torch.onnx.export(
        Op(call).eval(),
        tensors,
        dynamo=True,
        verbose=False,
        opset_version=19,
        custom_translation_table=TRANSLATIONS,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return [node.op_type for node in program.model_proto.graph.node], torch.from_numpy(session.run(None, feeds)[0])


@pytest.mark.parametrize(("sets", "heads", "dtype"), [(3, 2, torch.float32), (1, 4, torch.float32), (3, 1, torch.half)])
def test_deform_attention_is_three_deformable_convolutions(sets, heads, dtype):
    torch.manual_seed(heads)
    x, weight, bias = torch.randn(2, 8, 5, 7), torch.randn(24, 8 // heads, 3, 3) / 6, torch.randn(24)
    offset = 3 * torch.randn(2, sets * 18, 5, 7)
    offset[0, :, 0, 0], offset[1, :, 2, 3] = -40.0, 2.0  # far outside, and on a pixel
    tensors = [tensor.to(dtype) for tensor in (x, offset, weight, bias)]
    nodes, got = through_onnx(lambda *t: ops.deform_attention(*t, heads=heads), *tensors)
    expected = ops.deform_attention(*(tensor.float() for tensor in tensors), heads=heads)
    assert nodes.count("DeformConv") == 3 and got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_keeps_its_scale(scale):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 10, 4)
    _, got = through_onnx(lambda *t: ops.attention(*t, scale), q, k, v)
    torch.testing.assert_close(got, ops.attention(q, k, v, scale))


def test_a_network_agrees_with_pytorch_in_batches_of_any_size(tmp_path):
    model, path = IACT(replace(MINIATURE, offsets="shared")), tmp_path / "model.onnx"
    shift_samples(model)
    deployed = Deployed(model, 1.5, decode=False)
    save_onnx(deployed, ABOUT, path, 19, "fp32")
    run = open_onnx(path, threads=1)
    parity = compare(run, deployed, "fp32")
    assert parity.holds and parity.compared > 300 and 0 < parity.heatmap < 1e-5, parity
    noise = torch.rand(3, 3, 64, 64) * 255
    torch.testing.assert_close(run(noise)[0], deployed(noise), rtol=0, atol=1e-4)
    graph = onnx.load(path).graph
    constants = {constant.name for constant in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "DeformConv"]
    assert len(convolutions) == 3 * 6 and {"Cast", "CastLike"}.isdisjoint(node.op_type for node in graph.node)
    assert all(node.input[1] in constants and node.input[3] in constants for node in convolutions)
    assert "iact/model" not in str(graph.node)  # no line of a file of this machine


@pytest.mark.parametrize(
    ("precision", "block"), [("fp32", "vit"), ("fp16", "detr"), ("fp16", "spatial"), ("int8", "vit")]
)
def test_blocks_and_precisions(precision, block, tmp_path):
    deployed, path = small_network(decode=True, block=block), tmp_path / "model.onnx"
    save_onnx(deployed, ABOUT, path, 19, precision)
    parity = compare(open_onnx(path, threads=1), deployed, precision)
    assert parity.holds and parity.heatmap > 0, parity
    graph = onnx.load(path)
    assert {entry.key: entry.value for entry in graph.metadata_props} == ABOUT
    kinds = {constant.data_type for constant in graph.graph.initializer if np.prod(constant.dims) > 500}
    assert getattr(onnx.TensorProto, {"fp32": "FLOAT", "fp16": "FLOAT16", "int8": "INT8"}[precision]) in kinds
    assert next(deployed.parameters()).dtype == torch.float32  # the reference is as it was


def test_calibration_and_parity_see_different_pictures():
    from iact.export.quantise import SEED

    first, second = draw_pictures(2, 32, SEED), draw_pictures(2, 32, 5)
    assert first.shape == (2, 3, 32, 32) and 200 < first.max() <= 255 and not torch.equal(first, second)
