"""The Transformer stage (paper, Fig. 2): multi-head spatial attention, the blocks it is compared with, and the stage.

Between blocks a map is kept as [B, H, W, C]: tokens for the linear layers, and, permuted, a channels_last picture for
the convolutions, without a copy either way."""

import math
from typing import Literal

import torch
from torch import nn

from iact.ops import attention, deform_attention

BlockKind = Literal["spatial", "vit", "detr"]
OffsetSets = Literal["separate", "shared"]


class SpatialAttention(nn.Module):
    """MSA (eq. 2-4): Q, K and V by deformable 3x3 convolutions, one group per head; [B, H, W, C] -> same."""

    def __init__(self, width: int, heads: int, offsets: OffsetSets):
        super().__init__()
        self.heads = heads
        sets = {"separate": 3, "shared": 1}[offsets]
        self.offset = nn.Conv2d(width, sets * 18, 3, padding=1)
        self.weight = nn.Parameter(torch.empty(3 * width, width // heads, 3, 3))
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.project = nn.Linear(width, width)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picture = x.permute(0, 3, 1, 2)
        attended = deform_attention(picture, self.offset(picture), self.weight, self.bias, heads=self.heads)
        return self.project(attended).reshape(x.shape)


class LinearAttention(nn.Module):
    """Self-attention with linear projections, as in ViT and DETR; [B, H, W, C] -> same.

    With `positions`, a sine encoding is added to what Q and K are made of, as in DETR's encoder."""

    def __init__(self, width: int, heads: int, positions: bool):
        super().__init__()
        self.heads, self.positions = heads, positions
        self.query_key = nn.Linear(width, 2 * width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        located = x + sine_positions(height, width, channels, x.device).to(x.dtype) if self.positions else x
        query, key = self.query_key(located).chunk(2, dim=-1)
        attended = attention(self._split(query), self._split(key), self._split(self.value(x)))
        return self.project(attended.transpose(1, 2).reshape(x.shape))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height * width, self.heads, channels // self.heads).transpose(1, 2)


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> torch.Tensor:
    """DETR's fixed encoding [H, W, C]: sines and cosines of y in the first half of the channels, of x in the second."""
    steps = channels // 4
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(steps, device=device) / steps)
    y = 2 * math.pi * (torch.arange(height, device=device) + 1) / height
    x = 2 * math.pi * (torch.arange(width, device=device) + 1) / width
    rows = torch.cat([(y[:, None] * frequencies).sin(), (y[:, None] * frequencies).cos()], dim=-1)
    columns = torch.cat([(x[:, None] * frequencies).sin(), (x[:, None] * frequencies).cos()], dim=-1)
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1)


class Block(nn.Module):
    """Attention and FFN (eq. 5), each with a residual: [B, H, W, C] -> same. DETR normalises after, others before."""

    def __init__(self, width: int, heads: int, kind: BlockKind, offsets: OffsetSets):
        super().__init__()
        self.post_norm = kind == "detr"
        if kind == "spatial":
            self.attention = SpatialAttention(width, heads, offsets)
        else:
            self.attention = LinearAttention(width, heads, positions=kind == "detr")
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm_attention = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.post_norm:
            x = self.norm_attention(x + self.attention(x))
            return self.norm_ffn(x + self.ffn(x))
        x = x + self.attention(self.norm_attention(x))
        return x + self.ffn(self.norm_ffn(x))


class TransformerStage(nn.Module):
    """Embedding and blocks: [B, C_in, H, W] -> T-feature map [B, width, H', W'].

    With `inputs` the embedding is a stride-2 convolution (eq. 1); without, the stage keeps the resolution and only
    integrates what it is given (the white block of Fig. 1)."""

    def __init__(self, width: int, heads: int, depth: int, kind: BlockKind, offsets: OffsetSets, inputs: int = 0):
        super().__init__()
        self.embed = nn.Conv2d(inputs, width, 3, stride=2, padding=1) if inputs else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, kind, offsets) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.embed(x).permute(0, 2, 3, 1))
        return self.blocks(tokens).permute(0, 3, 1, 2)
