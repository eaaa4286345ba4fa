"""Boxes, crops and the affine maps between image, crop and heatmap.

Said once, for the whole project: the centre of a pixel has integer coordinates, so a picture W wide spans -0.5 to
W - 0.5. Points are (x, y). An affine map is a matrix [2, 3] (or [B, 2, 3]) from points of its source to its target."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

CROP_MARGIN = 1.25  # side of the crop over the larger side of the landmark box: HRNet's convention


def landmark_box(landmarks: np.ndarray) -> np.ndarray:
    """The tight box (x0, y0, x1, y1), [..., 4], around landmarks [..., K, 2]."""
    return np.concatenate([landmarks.min(axis=-2), landmarks.max(axis=-2)], axis=-1)


def crop_matrix(box: np.ndarray, size: int, margin: float = CROP_MARGIN) -> np.ndarray:
    """Map [2, 3] from image px to px of a square crop, `size` px wide: the box's centre, its larger side x `margin`."""
    x0, y0, x1, y1 = (float(value) for value in box)
    scale = size / (margin * max(x1 - x0, y1 - y0))
    centre_x, centre_y, middle = (x0 + x1) / 2, (y0 + y1) / 2, (size - 1) / 2
    return np.array([[scale, 0, middle - scale * centre_x], [0, scale, middle - scale * centre_y]], dtype=np.float64)


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse [..., 2, 3] of affine maps [..., 2, 3]."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def transform_points(points, matrix):
    """Points [..., K, 2] through maps [..., 2, 3]; numpy arrays and tensors alike."""
    return (points[..., None, :] * matrix[..., None, :, :2]).sum(-1) + matrix[..., None, :, 2]


def to_heatmap(points, stride: float):
    """Input px to heatmap px, for a heatmap `stride` times smaller than the network's input."""
    return (points + 0.5) / stride - 0.5


def from_heatmap(points, stride: float):
    """Heatmap px to input px, the inverse of `to_heatmap`."""
    return (points + 0.5) * stride - 0.5


def cut(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The square crop uint8 [size, size, 3] of an image uint8 [H, W, 3]; outside the image is black.

    `matrix` maps image px to crop px. Where it shrinks, the image is first reduced by area, so that nothing aliases."""
    scale = min(1.0, float(np.sqrt(abs(np.linalg.det(matrix[:, :2])))))
    image, reduction = _reduce(image, matrix, size, scale)
    matrix = _compose(matrix, invert(reduction))
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _reduce(image: np.ndarray, matrix: np.ndarray, size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image that the crop sees, reduced by area to `scale`, and the map from image px to its px."""
    corners = transform_points(np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64), invert(matrix))
    reach = int(np.ceil(2 / scale))
    x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int) - reach, 0)
    x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + reach, np.array(image.shape[1::-1]))
    part = image[y0:y1, x0:x1]
    if part.size == 0:  # the crop lies wholly outside the image
        return np.zeros((1, 1, 3), np.uint8), np.array([[1, 0, -x0], [0, 1, -y0]], np.float64)
    width, height = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    small = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    ratio_x, ratio_y = width / part.shape[1], height / part.shape[0]
    offset_x, offset_y = (0.5 - x0) * ratio_x - 0.5, (0.5 - y0) * ratio_y - 0.5
    return small, np.array([[ratio_x, 0, offset_x], [0, ratio_y, offset_y]])


def _compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The map that applies `inner`, then `outer`."""
    linear = outer[:, :2] @ inner
    linear[:, 2] += outer[:, 2]
    return linear


def warp(images: torch.Tensor, matrices: torch.Tensor, size: int, change: torch.Tensor | None = None) -> torch.Tensor:
    """Pictures [B, C, size, size] sampled bilinearly from images [B, C, H, W]; the surroundings are mirrored in.

    `matrices` [B, 2, 3] map *output* px to *input* px; `change` [B, size, size, 2], in input px, is subtracted."""
    height, width = images.shape[-2:]
    ramp = torch.arange(size, dtype=torch.float32, device=images.device)
    pixels = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), dim=-1).reshape(1, -1, 2)
    source = transform_points(pixels, matrices.float()).reshape(-1, size, size, 2)
    source = source if change is None else source - change
    x, y = source.unbind(-1)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)
