"""The convolutional pieces: Conv-BN-ReLU, the residual module of a Convolution stage, channel attention, enlarging."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU: [B, C_in, H, W] -> [B, C_out, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class ConvModule(nn.Module):
    """The paper's convolutional module: two stride-1 Conv-BN-ReLU blocks, with a residual around them (section 2.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def conv_stage(channels: int, modules: int) -> nn.Sequential:
    """A Convolution stage: `modules` residual modules at full resolution. Gives the C-feature map."""
    return nn.Sequential(*(ConvModule(channels) for _ in range(modules)))


def downsample(inputs: int, outputs: int, halvings: int) -> nn.Sequential:
    """Stride-2 3x3 convolutions from [B, inputs, H, W] to [B, outputs, H / 2^halvings, W / 2^halvings]."""
    widths = [inputs] * halvings + [outputs]
    return nn.Sequential(*(ConvBlock(a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False)))


class ChannelAttention(nn.Module):
    """Weights channels by what their mean and maximum say (Woo et al. 2018, section 3.1): [B, C, H, W] -> same."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.sigmoid(self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3))))
        return x * weight[:, :, None, None]


def add_raised(features: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """`features` [B, C, H, W] plus the map `m` [B, C, h, w] at their resolution, as two products: one along y, and one
    along x that adds. On a CPU that is several times faster than interpolating channels_last maps."""
    batch, channels, height, width = features.shape
    along_y, along_x = (interpolation(*sizes, m) for sizes in zip(m.shape[2:], (height, width), strict=True))
    tall = torch.matmul(along_y, m.permute(0, 2, 3, 1).flatten(2)).view(batch * height, m.shape[3], channels)
    rows = features.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
    sums = torch.baddbmm(rows, along_x.expand(batch * height, -1, -1), tall)
    return sums.view(batch, height, width, channels).permute(0, 3, 1, 2)


def interpolation(size: int, to: int, like: torch.Tensor) -> torch.Tensor:
    """The weights [to, size] of linear interpolation (pixels are areas, edges repeat), in dtype and place as `like`."""
    unit = torch.eye(size, dtype=torch.float64, device=like.device)[None]
    return F.interpolate(unit, to, mode="linear", align_corners=False)[0].t().to(like.dtype)
