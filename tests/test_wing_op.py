"""The wing losses as PyTorch ops: contract, compilation, export, autocast, and what is said of wrong arguments."""

import pytest
import torch
from test_wing_loss import DEFAULTS, random_heatmaps, views

from iact import ops
from iact.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduce", [True, False])
def test_operator_contract(dtype, reduce):
    for shape in [(2, 3, 4, 5), (0, 3, 4, 5)]:
        pred, target = random_heatmaps(shape, dtype)
        weight = torch.rand(3, 1, 1)
        for _, view in [("plain", pred), *views(pred)] if shape[0] else [("empty", pred)]:
            arguments = (view.requires_grad_(), target, weight, True, *DEFAULTS, reduce)
            torch.library.opcheck(torch.ops.iact.wing_loss.default, arguments)


def test_compiles_whole_and_keeps_value_and_gradient():
    compiled = torch.compile(lambda p, t: ops.smooth_wing_loss(p * 2, t), fullgraph=True, backend="aot_eager")
    pred, target = random_heatmaps()
    results = []
    for loss in (compiled, lambda p, t: ops.smooth_wing_loss(p * 2, t)):
        leaf = pred.clone().requires_grad_()
        value = loss(leaf, target)
        value.backward()
        results.append((value.detach(), leaf.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_exports_as_one_op():
    class Loss(torch.nn.Module):
        def forward(self, pred, target):
            return ops.smooth_wing_loss(pred, target)

    pred, target = random_heatmaps()
    program = torch.export.export(Loss(), (pred, target), dynamic_shapes=({0: torch.export.Dim("batch")},) * 2)
    assert "iact.wing_loss" in program.graph_module.code
    more = random_heatmaps((5, 5, 7, 11), seed=1)
    torch.testing.assert_close(program.module()(*more), ops.smooth_wing_loss(*more))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_float32(dtype):
    pred, target = random_heatmaps(dtype=dtype)
    target = target.float()
    pred.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops.smooth_wing_loss(pred, target)
    loss.backward()
    assert loss.dtype == torch.float32 and pred.grad.dtype == dtype
    torch.testing.assert_close(loss, ops.smooth_wing_loss(pred.detach().float(), target))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"target": torch.zeros(2, 3, 4, 4)},
            r"target: expected the shape of pred, \[2, 3, 4, 5\], got \[2, 3, 4, 4\]",
        ),
        ({"target": torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, r"target: expected float32.* got torch.int64"),
        ({"pred": torch.zeros(2, 3, 4, 5, dtype=torch.complex64)}, r"pred: expected float32.* got torch.complex64"),
        ({"target": torch.zeros(2, 3, 4, 5, device="meta")}, r"target: expected the device of pred, cpu, got meta"),
        (
            {"weight": torch.zeros(2, 1, 1)},
            r"weight: expected a shape that broadcasts .*\[2, 3, 4, 5\], got \[2, 1, 1\]",
        ),
        ({"weight": torch.zeros(1, 2, 3, 4, 5)}, r"weight: expected a shape that broadcasts"),
        ({"omega": 0.0}, r"omega: expected a positive number, got 0.0"),
        ({"epsilon": float("nan")}, r"epsilon: expected a positive number, got nan"),
        ({"alpha": 1.0}, r"alpha: expected a number above 1, got 1.0"),
        ({"theta1": 0.5}, r"theta1: expected 1e-15 to 1, and below theta2 \(0.5\), got 0.5"),
        ({"theta1": 1.5, "theta2": 2.0}, r"theta1: expected 1e-15 to 1"),
        ({"theta1": 3e-20}, r"theta1: expected 1e-15 to 1"),
        (
            {"epsilon": 1e-6, "alpha": 8.0},
            r"alpha: expected \(theta2 / epsilon\)\^alpha of at most 1e35",
        ),
        ({"theta2": 0.5, "epsilon": 1e-7}, r"epsilon: expected at least a millionth of theta2"),
        ({"reduction": "sum"}, r'reduction: expected "mean" or "none", got \'sum\''),
    ],
)
def test_wrong_arguments_are_named(change, words):
    arguments = {"pred": torch.zeros(2, 3, 4, 5), "target": torch.zeros(2, 3, 4, 5)} | change
    with pytest.raises(InputError, match="smooth_wing_loss: " + words):
        ops.smooth_wing_loss(**arguments)
