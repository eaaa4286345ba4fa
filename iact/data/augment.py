"""The paper's augmentations and a few of its successors', on batches, on the device, with one warp per picture."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from iact.data.crops import Crops
from iact.geometry import CROP_MARGIN, transform_points, warp
from iact.layouts import Layout


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and strengths. Rotation is in degrees, shift in shares of the input side, the rest are factors."""

    flip: float = 0.5
    rotation: float = 11.0  # standard deviation; cut at 2.8 of them, as all below
    scale: float = 0.08  # standard deviation of the logarithm
    shift: float = 0.03  # standard deviation
    aspect: float = 0.03  # standard deviation of the logarithm
    mask: float = 0.3  # probability of a covered rectangle
    colour: float = 0.5  # probability of gain, offset and gamma per channel
    grey: float = 0.2
    blur: float = 0.25
    noise: float = 0.2


@dataclass(frozen=True)
class Batch:
    """`pictures` [B, 3, S, S] in 0..255, `landmarks` [B, K, 2] in input px, `visible` [B, K]."""

    pictures: torch.Tensor
    landmarks: torch.Tensor
    visible: torch.Tensor


def draw_batch(
    crops: Crops, indices: torch.Tensor, size: int, layout: Layout, settings: Augmentation, seed: int
) -> Batch:
    """The faces at `indices`, augmented, as the network's input. The same seed gives the same batch."""
    generator = torch.Generator().manual_seed(seed)
    device = crops.pictures.device
    indices = indices.to(device)
    flipped = torch.rand(len(indices), generator=generator) < settings.flip
    to_crop = _random_maps(len(indices), crops, size, flipped, settings, generator)
    pictures = warp(crops.pictures[indices].float(), to_crop.to(device), size)
    landmarks, visible = crops.landmarks[indices], crops.visible[indices]
    landmarks = transform_points(landmarks, _invert(to_crop).to(device))
    mirror = torch.tensor(layout.mirror, device=device)
    order = torch.where(flipped[:, None].to(device), mirror, torch.arange(len(mirror), device=device))
    landmarks = landmarks.gather(1, order[..., None].expand(-1, -1, 2))
    return Batch(_recolour(pictures, settings, generator), landmarks, visible.gather(1, order))


def _random_maps(count: int, crops: Crops, size: int, flipped, settings: Augmentation, generator) -> torch.Tensor:
    """Maps [B, 2, 3] from input px to crop px: the evaluation crop, changed at random, then flipped."""

    def normal(spread: float) -> torch.Tensor:
        return torch.randn(count, generator=generator).clamp(-2.8, 2.8) * spread

    crop_side = crops.pictures.shape[-1]
    zoom = crop_side / crops.margin * CROP_MARGIN / size * torch.exp(normal(settings.scale))
    stretch = torch.exp(normal(settings.aspect) / 2)
    angle = normal(settings.rotation) * (math.pi / 180)
    sign = 1 - 2 * flipped.float()
    cosine, sine = torch.cos(angle), torch.sin(angle)
    linear = torch.stack(
        [sign * cosine * zoom * stretch, -sine * zoom / stretch, sign * sine * zoom * stretch, cosine * zoom / stretch],
        dim=-1,
    ).reshape(-1, 2, 2)
    centre = torch.stack([normal(settings.shift), normal(settings.shift)], dim=-1) * size + (size - 1) / 2
    offset = (crop_side - 1) / 2 - (linear @ centre[..., None])
    return torch.cat([linear, offset], dim=-1)


def _invert(maps: torch.Tensor) -> torch.Tensor:
    linear = torch.linalg.inv(maps[..., :2])
    return torch.cat([linear, -linear @ maps[..., 2:]], dim=-1)


def _recolour(pictures: torch.Tensor, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    count, device = len(pictures), pictures.device

    def chosen(probability: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) < probability)[:, None, None, None].to(device)

    def between(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return (torch.rand(count, channels, 1, 1, generator=generator) * (high - low) + low).to(device)

    pictures = torch.where(chosen(settings.mask), _cover(pictures, generator), pictures)
    pictures = torch.where(chosen(settings.grey), pictures.mean(1, keepdim=True), pictures)
    gamma, gain, offset = torch.exp2(between(-1, 1)), between(0.75, 1.25) * between(0.85, 1.15, 3), between(-20, 20)
    toned = (pictures / 255).clamp(1e-4, 1) ** gamma * 255 * gain + offset
    pictures = torch.where(chosen(settings.colour), toned, pictures)
    pictures = torch.where(chosen(settings.blur), _blur(pictures, between(0.4, 2.0)), pictures)
    noise_seed = int(torch.randint(2**62, (), generator=generator))
    noise = torch.randn(pictures.shape, generator=torch.Generator(device).manual_seed(noise_seed), device=device)
    return (pictures + chosen(settings.noise) * between(2, 12) * noise).clamp(0, 255)


def _cover(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One rectangle a picture, 10 to 40 % of its sides, of one colour or of another picture's texture."""
    count, _, size, _ = pictures.shape
    device = pictures.device
    sides = (torch.rand(count, 2, 1, generator=generator) * 0.3 + 0.1) * size
    corners = torch.rand(count, 2, 1, generator=generator) * size - sides / 2
    pixels = torch.arange(size)
    inside = ((pixels >= corners) & (pixels < corners + sides)).to(device)
    region = inside[:, None, 1, :, None] & inside[:, None, 0, None, :]
    colour = (torch.rand(count, 3, 1, 1, generator=generator) * 255).to(device)
    textured = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).to(device)
    return torch.where(region, torch.where(textured, pictures.roll(1, 0).flip(2), colour), pictures)


def _blur(pictures: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A Gaussian of the given sigma [B, 1, 1, 1] px, as two depthwise passes over all pictures at once."""
    count, channels, height, width = pictures.shape
    taps = torch.arange(-5, 6, device=pictures.device)
    kernel = torch.exp(-0.5 * (taps / sigma.reshape(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    stacked = F.pad(pictures.reshape(1, count * channels, height, width), (5, 5, 5, 5), mode="replicate")
    stacked = F.conv2d(stacked, kernel[..., None, :], groups=count * channels)
    return F.conv2d(stacked, kernel[..., :, None], groups=count * channels).reshape(pictures.shape)
