"""The paper's augmentations and a few of its successors', on batches, on the device, with one warp per picture.

All chance is drawn beforehand, on the host, as one row of numbers a picture; what follows is a function of these rows
and of the pictures alone. So a batch does not depend on who computes which part of it, nor on the device, and the whole
can be captured in a CUDA graph."""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from iact.data.shapes import MODES, SPREAD, ShapeModes, bend_points, bending, enlarged, random_change
from iact.geometry import CROP_MARGIN, transform_points, warp
from iact.layouts import Layout

NUMBERS = 29 + MODES  # that a picture uses up
PROBABILITIES = ("flip", "mask", "colour", "grey", "blur", "noise", "shape")  # among the settings; others are strengths
CUT = 2.8  # standard deviations at which normal numbers are cut


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and strengths. Rotation is in degrees, shift in shares of the input side, the rest are factors.

    Mild, for networks that see each face a hundred times at most: those fit the training faces no better than others.
    Scale and shift are as large as the errors of a detector's boxes want them."""

    flip: float = 0.5
    rotation: float = 8.0  # standard deviation; cut at 2.8 of them, as all below
    scale: float = 0.08  # standard deviation of the logarithm
    shift: float = 0.03  # standard deviation
    aspect: float = 0.015  # standard deviation of the logarithm
    mask: float = 0.15  # probability of a covered rectangle
    colour: float = 0.25  # probability of gain, offset and gamma per channel
    grey: float = 0.1
    blur: float = 0.125
    noise: float = 0.1
    shape: float = 0.0  # probability of another shape of the face, the picture bent to it


@dataclass(frozen=True)
class Batch:
    """`pictures` [B, 3, S, S] in 0..255, `landmarks` [B, K, 2] in input px, `visible` [B, K]."""

    pictures: torch.Tensor
    landmarks: torch.Tensor
    visible: torch.Tensor


class Chance:
    """Rows of numbers from 0 to 1, a row for each picture, that are used up column by column."""

    def __init__(self, numbers: torch.Tensor):
        self.numbers, self.used = numbers, 0

    def uniform(self, low: float = 0.0, high: float = 1.0, count: int = 1) -> torch.Tensor:
        """[B, count] between the two."""
        columns = self.numbers[:, self.used : self.used + count]
        self.used += count
        return columns * (high - low) + low

    def normal(self, spread: float) -> torch.Tensor:
        """[B] of that standard deviation, cut at `CUT` of them."""
        ends = math.erf(CUT / math.sqrt(2))
        return torch.erfinv(self.uniform(-ends, ends)[:, 0]) * (math.sqrt(2) * spread)

    def happens(self, probability: float) -> torch.Tensor:
        """[B], true with that probability."""
        return self.uniform()[:, 0] < probability


def augment(
    pictures: torch.Tensor,
    landmarks: torch.Tensor,
    visible: torch.Tensor,
    *,
    margin: float,
    size: int,
    layout: Layout,
    settings: Augmentation,
    shapes: ShapeModes | None,
    numbers: torch.Tensor,
) -> Batch:
    """Crops uint8 [B, 3, S, S] of that margin, landmarks [B, K, 2] in crop px, as the network's input of `size` px.

    `numbers` [B, NUMBERS] from 0 to below 1, on the device of the pictures, decide everything; `shapes`, where faces
    change theirs, say how they do."""
    chance = Chance(numbers)
    flipped = chance.happens(settings.flip)
    to_crop = _random_maps(chance, flipped, pictures.shape[-1] / margin, pictures.shape[-1], size, settings)
    inverse, change = _invert(to_crop), _shape_change(chance, landmarks, shapes, settings.shape)
    if change is None:
        warped, landmarks = warp(pictures.float(), to_crop, size), transform_points(landmarks, inverse)
    else:
        field = bending(transform_points(landmarks + change, inverse), change, size)
        warped = warp(pictures.float(), to_crop, size, enlarged(field, size))
        landmarks = bend_points(field, landmarks, inverse, size)
    mirror, straight = _orders(layout.mirror, pictures.device)
    order = torch.where(flipped[:, None], mirror, straight)
    landmarks = landmarks.gather(1, order[..., None].expand(-1, -1, 2))
    return Batch(_recolour(warped, settings, chance), landmarks, visible.gather(1, order))


@cache
def _orders(mirror: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(mirror, device=device), torch.arange(len(mirror), device=device)


def _random_maps(
    chance: Chance, flipped: torch.Tensor, box: float, crop_side: int, size: int, settings: Augmentation
) -> torch.Tensor:
    """Maps [B, 2, 3] from input px to crop px: the evaluation crop, changed at random, then flipped. `box` is the
    larger side of the landmark box in crop px."""
    zoom = box * CROP_MARGIN / size * torch.exp(chance.normal(settings.scale))
    stretch = torch.exp(chance.normal(settings.aspect) / 2)
    angle = chance.normal(settings.rotation) * (math.pi / 180)
    sign = 1 - 2 * flipped.float()
    cosine, sine = torch.cos(angle), torch.sin(angle)
    linear = torch.stack(
        [sign * cosine * zoom * stretch, -sine * zoom / stretch, sign * sine * zoom * stretch, cosine * zoom / stretch],
        dim=-1,
    ).reshape(-1, 2, 2)
    shift = torch.stack([chance.normal(settings.shift), chance.normal(settings.shift)], dim=-1)
    centre = shift * size + (size - 1) / 2
    offset = (crop_side - 1) / 2 - (linear * centre[:, None]).sum(-1, keepdim=True)
    return torch.cat([linear, offset], dim=-1)


def _shape_change(
    chance: Chance, landmarks: torch.Tensor, shapes: ShapeModes | None, probability: float
) -> torch.Tensor | None:
    """How far each landmark [B, K, 2] is to move, or None where faces keep their shapes."""
    chosen = chance.happens(probability)
    amounts = torch.stack([chance.normal(SPREAD) for _ in range(MODES)], dim=-1)
    return None if shapes is None else random_change(landmarks, shapes, amounts * chosen[:, None])


def _invert(maps: torch.Tensor) -> torch.Tensor:
    """By the formula for 2 x 2: torch.linalg looks at the result on the host, which a CUDA graph cannot."""
    (a, b), (c, d) = maps[:, 0, :2].unbind(-1), maps[:, 1, :2].unbind(-1)
    linear = torch.stack([d, -b, -c, a], dim=-1).reshape(-1, 2, 2) / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -(linear * maps[:, None, :, 2]).sum(-1, keepdim=True)], dim=-1)


def _recolour(pictures: torch.Tensor, settings: Augmentation, chance: Chance) -> torch.Tensor:
    def chosen(probability: float) -> torch.Tensor:
        return chance.happens(probability)[:, None, None, None]

    def between(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return chance.uniform(low, high, channels)[..., None, None]

    pictures = torch.where(chosen(settings.mask), _cover(pictures, chance), pictures)
    pictures = torch.where(chosen(settings.grey), pictures.mean(1, keepdim=True), pictures)
    gamma, gain, offset = torch.exp2(between(-1, 1)), between(0.75, 1.25) * between(0.85, 1.15, 3), between(-20, 20)
    toned = (pictures / 255).clamp(1e-4, 1) ** gamma * 255 * gain + offset
    pictures = torch.where(chosen(settings.colour), toned, pictures)
    pictures = torch.where(chosen(settings.blur), _blur(pictures, between(0.4, 2.0)), pictures)
    strength = chosen(settings.noise) * between(2, 12)
    return (pictures + strength * _noise(pictures.shape[1:], chance.uniform(), pictures.device)).clamp(0, 255)


def _cover(pictures: torch.Tensor, chance: Chance) -> torch.Tensor:
    """One rectangle a picture, 10 to 40 % of its sides, of one colour or of the texture of its other end."""
    size = pictures.shape[-1]
    sides = chance.uniform(0.1, 0.4, 2)[..., None] * size
    corners = chance.uniform(0, size, 2)[..., None] - sides / 2
    pixels = torch.arange(size, device=pictures.device)
    inside = (pixels >= corners) & (pixels < corners + sides)
    region = inside[:, None, 1, :, None] & inside[:, None, 0, None, :]
    colour = chance.uniform(0, 255, 3)[..., None, None]
    textured = chance.happens(0.5)[:, None, None, None]
    return torch.where(region, torch.where(textured, pictures.flip(2), colour), pictures)


def _blur(pictures: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A Gaussian of the given sigma [B, 1, 1, 1] px, as two depthwise passes over all pictures at once."""
    count, channels, height, width = pictures.shape
    taps = torch.arange(-5, 6, device=pictures.device)
    kernel = torch.exp(-0.5 * (taps / sigma.reshape(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    stacked = F.pad(pictures.reshape(1, count * channels, height, width), (5, 5, 5, 5), mode="replicate")
    stacked = F.conv2d(stacked, kernel[..., None, :], groups=count * channels)
    return F.conv2d(stacked, kernel[..., :, None], groups=count * channels).reshape(pictures.shape)


def _noise(shape: torch.Size, place: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Normal numbers [B, *shape]: each picture's a stretch, from `place` [B, 1] on, of a fixed row of them."""
    row = _noise_row(2 * shape.numel(), device).unfold(0, shape.numel(), 1)
    return row[(place[:, 0] * shape.numel()).long()].reshape(-1, *shape)


@cache
def _noise_row(count: int, device: torch.device) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count)).to(device)
