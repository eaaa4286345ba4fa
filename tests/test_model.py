import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import iact
from iact.cost import count_gmac, count_parameters
from iact.errors import InputError
from iact.model import SIZES, create_model, normalise
from iact.model.iact import Head
from iact.model.layers import ChannelAttention
from iact.model.transformer import SpatialAttention, sine_positions

SMALL = dict(input_size=64, stem=8, channels=8, heads=(2, 4, 8), conv_modules=1, head=16)
ONE_BLOCK = dict(depths=(1, 1, 1), fusion_depths=(1, 1, 1))


def _cost(model: torch.nn.Module, size: int) -> tuple[float, float]:
    """Parameters in millions and multiply-accumulates in thousands of millions, for one picture."""
    return count_parameters(model), count_gmac(model.eval(), torch.zeros(1, 3, size, size))


def _defined(self: Head, c_map: torch.Tensor, fused: list[torch.Tensor]) -> torch.Tensor:
    """The head as it is defined: all maps at the highest resolution, concatenated, then two 1x1 convolutions."""
    raised = [F.interpolate(m, c_map.shape[-2:], mode="bilinear", align_corners=False) for m in fused]
    return torch.nn.Sequential.forward(self, torch.cat([c_map, *raised], dim=1))


def test_iact_has_the_published_size_and_work(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Head, "forward", _defined)
        parameters, gmac = _cost(create_model("iact", num_landmarks=98), 256)
    assert parameters == pytest.approx(20.29, rel=0.01)  # paper, Table 1
    assert gmac == pytest.approx(6.45, rel=0.01)
    assert _cost(create_model("iact", num_landmarks=98), 256)[1] == pytest.approx(0.91 * gmac, rel=0.01)


def test_smaller_sizes_cost_what_they_promise():
    assert _cost(create_model("iact_s"), 256)[1] == pytest.approx(6.45 / 4, rel=0.1)
    assert _cost(create_model("iact_t"), 128)[1] == pytest.approx(0.27, rel=0.1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_head_computes_what_it_is_defined_to(layout):
    """In training, with the gradients of everything that goes in."""
    torch.manual_seed(0)
    config = dataclasses.replace(SIZES["iact_t"], num_landmarks=5, channels=8, head=24)
    head = Head(config).double().train()
    sizes = [(8, 16, 12), (16, 8, 6), (32, 4, 3), (64, 2, 2)]  # the last is enlarged by 8 and by 6
    maps = [torch.randn(3, *size, dtype=torch.double).contiguous(memory_format=layout) for size in sizes]
    outcomes = []
    for forward in (Head.forward, _defined):
        leaves = [m.clone().requires_grad_() for m in maps]
        result = forward(copy.deepcopy(head), leaves[0], leaves[1:])
        outcomes.append([result, *torch.autograd.grad((result * torch.sin(result)).sum(), leaves)])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", SIZES)
def test_heatmaps_are_a_quarter_of_the_input(name):
    model = iact.create_model(name, num_landmarks=29).eval()
    size = model.config.input_size
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 29, size // 4, size // 4)


@pytest.mark.parametrize("block", ["spatial", "vit", "detr"])
@pytest.mark.parametrize("feature_attention", [True, False])
@pytest.mark.parametrize("channel_attention", [True, False])
@pytest.mark.parametrize("offsets", ["separate", "shared"])
def test_every_ablation_runs_and_trains_every_parameter(block, feature_attention, channel_attention, offsets):
    torch.manual_seed(0)
    model = create_model(
        "iact",
        5,
        block=block,
        feature_attention=feature_attention,
        channel_attention=channel_attention,
        offsets=offsets,
        **SMALL,
        **ONE_BLOCK,
    )
    heatmaps = model(torch.randn(2, 3, 64, 64))
    (heatmaps * torch.randn_like(heatmaps)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # With channel attention, a hidden unit of its MLP may be dead for these two pictures; nothing else may be.
    assert not [name for name in idle if "channel_attention" not in name]


def test_ablations_change_what_they_should():
    full = _cost(create_model("iact", 98), 256)[0]
    assert _cost(create_model("iact", 98, offsets="shared"), 256)[0] < full
    assert _cost(create_model("iact", 98, block="vit"), 256)[0] < full
    assert _cost(create_model("iact", 98, feature_attention=False), 256)[0] < full
    assert _cost(create_model("iact", 98, channel_attention=False), 256)[0] < full


def test_offsets_start_at_zero_so_that_training_starts_from_plain_convolutions():
    module = SpatialAttention(width=8, heads=2, offsets="separate")
    assert not module.offset(torch.randn(1, 8, 5, 5)).any()


def test_spatial_attention_is_the_formula_of_the_paper():
    # With offsets at zero, Q, K and V are grouped 3x3 convolutions; eq. 3 and 4 follow.
    torch.manual_seed(0)
    module, x = SpatialAttention(width=8, heads=2, offsets="separate"), torch.randn(2, 4, 5, 8)
    picture = x.permute(0, 3, 1, 2)
    q, k, v = (
        torch.nn.functional.conv2d(picture, w, b, padding=1, groups=2).reshape(2, 2, 4, 20).transpose(2, 3)
        for w, b in zip(module.weight.chunk(3), module.bias.chunk(3), strict=True)
    )
    attended = torch.softmax(q @ k.transpose(2, 3) / 2, dim=-1) @ v  # C_h = 4, sqrt 2
    expected = module.project(attended.transpose(1, 2).reshape(2, 20, 8)).reshape(x.shape)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_channel_attention_scales_whole_channels_between_nothing_and_all():
    module, x = ChannelAttention(32), torch.rand(3, 32, 5, 7) + 0.5
    ratio = module(x) / x
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))


def test_sine_positions_tell_every_pixel_apart():
    positions = sine_positions(8, 8, 32, torch.device("cpu")).flatten(0, 1)
    assert positions.abs().max() <= 1
    assert (torch.cdist(positions, positions) + 10 * torch.eye(64)).min() > 0.1


def test_whole_model_compiles_and_exports_with_a_dynamic_batch():
    torch.manual_seed(0)
    model = create_model("iact", 5, **SMALL, **ONE_BLOCK).eval()
    pictures = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(pictures)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(pictures)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
    batch = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(batch,))
    torch.testing.assert_close(exported.module()(pictures), expected, rtol=1e-4, atol=1e-4)


def test_normalise_centres_grey():
    torch.testing.assert_close(normalise(torch.tensor([127.5, 255.0, 0.0])), torch.tensor([0.0, 1.9922, -1.9922]))


def test_unknown_names_and_switches_are_refused():
    with pytest.raises(InputError, match="unknown model 'resnet': expected one of iact, iact_s, iact_t"):
        create_model("resnet")
    with pytest.raises(InputError, match="unknown model switch 'depth'"):
        create_model("iact", depth=3)
    with pytest.raises(InputError, match="block: expected one of spatial, vit, detr, got 'resnet'"):
        create_model("iact", block="resnet")
    with pytest.raises(InputError, match="offsets: expected one of separate, shared, got 'none'"):
        create_model("iact", offsets="none")
