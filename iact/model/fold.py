"""The network as inference wants it: the same function, to rounding, with less work."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iact.model.iact import IACT, Head, raised
from iact.model.layers import ConvBlock


class FoldedHead(nn.Module):
    """A head whose first convolution, 1x1, is applied to each map before it is brought to full resolution.

    That is the same as after it: both are linear, and the weights of the interpolation add up to one."""

    def __init__(self, head: Head, widths: list[int]):
        super().__init__()
        first, self.activation, self.last = head[0][0], head[0][-1], head[1]
        self.mixes = nn.ModuleList()
        for i, weight in enumerate(first.weight.detach().split(widths, dim=1)):
            mix = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=i == 0)
            mix.weight = nn.Parameter(weight.clone())
            if i == 0:
                mix.bias = first.bias
            self.mixes.append(mix)

    def forward(self, c_map: torch.Tensor, fused: list[torch.Tensor]) -> torch.Tensor:
        features = self.mixes[0](c_map)
        for mix, m in zip(self.mixes[1:], fused, strict=True):
            features += raised(mix(m), c_map)
        return self.last(self.activation(features))


def fold(model: IACT) -> IACT:
    """A copy for inference: batch normalisation goes into the convolutions, the head's first convolution to the maps
    before they are enlarged. It cannot be trained, and its state is no checkpoint of the model."""
    model = copy.deepcopy(model).eval()
    for block in [module for module in model.modules() if isinstance(module, ConvBlock)]:
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    model.head = FoldedHead(model.head, [model.config.channels, *model.config.widths])
    return model.requires_grad_(False)
