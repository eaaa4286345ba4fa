"""The folded network is the network, to rounding."""

import pytest
import torch

from iact.model import create_model, fold


def trained(name="iact_t", **switches):
    """A small model whose batch normalisation has seen something."""
    torch.manual_seed(0)
    model = create_model(name, num_landmarks=7, input_size=64, **switches).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for _ in range(3):
            model(2 * torch.randn(4, 3, 64, 64) + 0.5)
    return model.eval()


@pytest.mark.parametrize("switches", [{}, {"block": "vit", "feature_attention": False, "channel_attention": False}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folding_changes_nothing_but_rounding(switches, layout):
    model = trained(**switches).to(memory_format=layout)
    pictures = torch.randn(3, 3, 64, 64).contiguous(memory_format=layout)
    with torch.no_grad():
        expected, got = model(pictures), fold(model)(pictures)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    with torch.no_grad():
        assert torch.equal(model(pictures), expected)  # the model itself is as it was


def test_nothing_is_normalised_or_trained_any_more():
    folded = fold(trained())
    kinds = {type(module).__name__ for module in folded.modules()}
    assert "BatchNorm2d" not in kinds and "Conv2d" in kinds
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not folded.training
