"""The network as inference wants it: the same function, to rounding, with less work."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iact.model.iact import IACT
from iact.model.layers import ConvBlock


def fold(model: IACT) -> IACT:
    """A copy for inference, whose convolutions have taken in the batch normalisation after them. It cannot be trained,
    and its state is no checkpoint of the model."""
    model = copy.deepcopy(model).eval()
    for block in [module for module in model.modules() if isinstance(module, ConvBlock)]:
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    return model.requires_grad_(False)
