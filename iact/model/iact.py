"""IACT (paper, Fig. 1): parallel convolution and transformer branches that exchange features three times."""

from dataclasses import asdict, dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import nn

from iact.errors import InputError
from iact.model.layers import ChannelAttention, ConvBlock, add_raised, conv_stage, downsample
from iact.model.transformer import BlockKind, OffsetSets, TransformerStage


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of a model and the switches of the paper's ablations (Tables 5 and 6)."""

    num_landmarks: int = 98
    input_size: int = 256  # px
    stride: int = 4  # input px of a heatmap px
    stem: int = 64
    channels: int = 48  # of the C-feature maps; the T-feature maps have 2, 4 and 8 times as many
    conv_modules: int = 4  # of each Convolution stage
    heads: tuple[int, int, int] = (2, 4, 8)
    depths: tuple[int, int, int] = (2, 2, 4)  # blocks of the Transformer stages that downsample
    fusion_depths: tuple[int, int, int] = (1, 2, 3)  # blocks of those that do not (white in Fig. 1)
    head: int = 256
    block: BlockKind = "spatial"
    offsets: OffsetSets = "separate"
    feature_attention: bool = True
    channel_attention: bool = True

    def __post_init__(self) -> None:
        for name, known in (("block", get_args(BlockKind)), ("offsets", get_args(OffsetSets))):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.stride not in (1, 2, 4):
            raise InputError(f"stride: expected 1, 2 or 4 input px of a heatmap px, got {self.stride!r}")
        for name, most in (("num_landmarks", 10**6), ("input_size", 10**4)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name}: expected a whole number from 1 to {most}, got {value!r}")
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise InputError(f"heads: expected divisors of the widths {self.widths}, got {self.heads}")

    @property
    def widths(self) -> tuple[int, int, int]:
        return (2 * self.channels, 4 * self.channels, 8 * self.channels)

    @property
    def heatmap_size(self) -> int:
        return self.input_size // self.stride


SIZES = {
    "iact": ModelConfig(),
    "iact_s": ModelConfig(stem=32, channels=24, heads=(1, 2, 4), depths=(1, 1, 2), fusion_depths=(1, 1, 2), head=128),
    "iact_t": ModelConfig(
        input_size=128, stem=32, channels=32, conv_modules=1, depths=(1, 1, 1), fusion_depths=(1, 1, 1), head=96
    ),
}


class Exchange(nn.Module):
    """Feature attention and channel attention of stage s, then the white block: gives the fused map m_s."""

    def __init__(self, config: ModelConfig, stage: int):
        super().__init__()
        width = config.widths[stage]
        self.feature_attention = config.feature_attention
        sources = [(config.channels, stage + 1), *((config.widths[i], stage - i) for i in range(stage))]
        sources = sources if config.feature_attention else []
        self.down = nn.ModuleList(downsample(channels, channels, halvings) for channels, halvings in sources)
        gathered = width + sum(channels for channels, _ in sources)
        self.channel_attention = ChannelAttention(gathered) if config.channel_attention else nn.Identity()
        self.mix = nn.Conv2d(gathered, width, 1)
        depth, heads = config.fusion_depths[stage], config.heads[stage]
        self.integrate = TransformerStage(width, heads, depth, config.block, config.offsets)

    def forward(self, t_map: torch.Tensor, higher: list[torch.Tensor]) -> torch.Tensor:
        """`t_map` [B, width, H, W] and the maps of higher resolution: the C-feature map, then m_1 .. m_{s-1}."""
        if self.feature_attention:
            t_map = torch.cat([t_map, *(down(x) for down, x in zip(self.down, higher, strict=True))], dim=1)
        return self.integrate(self.mix(self.channel_attention(t_map)))


class Head(nn.Sequential):
    """The C-feature map [B, C, H, W] and the fused maps of lower resolution to K heatmaps [B, K, H, W], or finer ones
    where the configuration says so: then each pixel of the last convolution holds a square of them.

    By definition all maps are brought to the highest resolution and concatenated before the first convolution. That is
    1x1, so each map may as well go through its part of it first: the same sums, with a seventh of the work."""

    def __init__(self, config: ModelConfig):
        self.widths = [config.channels, *config.widths]
        self.finer = 4 // config.stride
        super().__init__(
            ConvBlock(sum(self.widths), config.head, kernel=1),
            nn.Conv2d(config.head, config.num_landmarks * self.finer**2, 1),
        )

    def forward(self, c_map: torch.Tensor, fused: list[torch.Tensor]) -> torch.Tensor:
        (first, normalise, activate), last = self
        own, *weights = first.weight.split(self.widths, dim=1)
        features = F.conv2d(c_map, own, first.bias)
        for weight, m in zip(weights, fused, strict=True):
            features = add_raised(features, F.conv2d(m, weight))
        heatmaps = last(activate(normalise(features)))
        return F.pixel_shuffle(heatmaps, self.finer) if self.finer > 1 else heatmaps


class IACT(nn.Module):
    """Pictures [B, 3, S, S], normalised by `normalise`, to heatmaps [B, K, S / stride, S / stride]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(
            ConvBlock(3, config.stem, stride=2), ConvBlock(config.stem, config.channels, stride=2)
        )
        self.convolve = nn.ModuleList(conv_stage(config.channels, config.conv_modules) for _ in range(3))
        self.transform = nn.ModuleList(
            TransformerStage(width, heads, depth, config.block, config.offsets, inputs=inputs)
            for width, heads, depth, inputs in zip(
                config.widths, config.heads, config.depths, (config.channels, *config.widths), strict=False
            )
        )
        self.exchange = nn.ModuleList(Exchange(config, stage) for stage in range(3))
        self.head = Head(config)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.stem(pictures)
        c_map, below, fused = features, features, []
        for convolve, transform, exchange in zip(self.convolve, self.transform, self.exchange, strict=True):
            c_map = convolve(c_map)
            t_map = transform(below)
            below = exchange(t_map, [c_map, *fused])
            fused.append(below)
        return self.head(c_map, fused)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in 0..255 to what the network takes: about -1 .. 1."""
    return (pictures - 127.5) / 64.0


def create_model(name: str, num_landmarks: int = 98, **switches) -> IACT:
    """The model of that size: "iact" (paper), "iact_s" (a quarter of the work) or "iact_t" (128 px input, for CPUs).

    `switches` are fields of `ModelConfig`: `block`, `offsets`, `feature_attention`, `channel_attention`, ...
    InputError for an unknown name or switch."""
    if name not in SIZES:
        raise InputError(f"unknown model {name!r}: expected one of {', '.join(SIZES)}")
    settings = {**asdict(SIZES[name]), "num_landmarks": num_landmarks}
    unknown = sorted(set(switches) - set(settings))
    if unknown:
        raise InputError(f"unknown model switch {unknown[0]!r}: expected some of {', '.join(settings)}")
    return IACT(ModelConfig(**{**settings, **switches}))
