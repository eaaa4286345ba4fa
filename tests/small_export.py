"""A network small enough to be exported, or compiled, in seconds."""

from dataclasses import replace

import torch
from small_training import MINIATURE
from torch import nn

from iact.export import Deployed
from iact.model.layers import ConvBlock
from iact.model.transformer import TransformerStage

SIDE, LANDMARKS = 32, 4


class OneStage(nn.Module):
    """Pictures [B, 3, 32, 32] to heatmaps [B, 4, 8, 8] by one Transformer stage of one block."""

    def __init__(self, block: str, offsets: str):
        super().__init__()
        self.config = replace(MINIATURE, num_landmarks=LANDMARKS, input_size=SIDE)
        self.stem = ConvBlock(3, 16, stride=2)
        self.stage = TransformerStage(16, 2, 1, block, offsets, inputs=16)
        self.head = nn.Conv2d(16, LANDMARKS, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage(self.stem(pictures)))


def small_network(decode: bool, block: str = "spatial", offsets: str = "separate") -> Deployed:
    """With random weights, and sampling offsets of about half a pixel."""
    torch.manual_seed(1)
    model = OneStage(block, offsets)
    shift_samples(model)
    return Deployed(model.eval(), 1.5, decode)


def shift_samples(model: nn.Module) -> None:
    """Sampling offsets of about half a pixel in the place of untrained ones, which are zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("offset.bias"):
            nn.init.normal_(parameter, std=0.5)
