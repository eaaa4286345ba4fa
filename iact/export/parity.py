"""Whether a file computes what PyTorch computes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from iact import ops
from iact.data.synthetic import draw_face
from iact.export.deployed import Deployed
from iact.geometry import from_heatmap
from iact.layouts import W300

Outputs = torch.Tensor | tuple[torch.Tensor, ...] | list[torch.Tensor]
Run = Callable[[torch.Tensor], Outputs]  # what a file computes of pictures
NumberFormat = Literal["fp32", "fp16", "int8"]
LIMITS: dict[NumberFormat, float] = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.2}  # of heatmaps, whose peaks are about 1
PIXELS = 0.01  # input px, in float32
BATCHES = (1, 5)


@dataclass(frozen=True)
class Parity:
    """How far a file's results are from PyTorch's in float32 on drawn faces.

    `heatmap` is the largest difference of heatmaps, or of scores where the file decodes. `pixels` and `mean_pixels`
    are the largest and the mean shift of a landmark, in input px, over the `compared` ones of `landmarks`."""

    number_format: NumberFormat
    heatmap: float
    pixels: float
    mean_pixels: float
    compared: int
    landmarks: int

    @property
    def holds(self) -> bool:
        """Whether the differences are within the limits; false for NaN. Shifts count in float32 only: what they are
        worth in others depends on the data."""
        return self.heatmap <= LIMITS[self.number_format] and (self.number_format != "fp32" or self.pixels <= PIXELS)

    def __str__(self) -> str:
        limit = f", limit {PIXELS}" if self.number_format == "fp32" else ""
        return (
            f"heatmaps differ from PyTorch's by at most {self.heatmap:.1e} (limit {LIMITS[self.number_format]:g}), "
            f"landmarks by at most {self.pixels:.2g} px (mean {self.mean_pixels:.2g}{limit}), "
            f"{self.compared} of {self.landmarks} compared"
        )


def draw_pictures(count: int, size: int, seed: int) -> torch.Tensor:
    """RGB pictures of drawn faces, float32 [count, 3, size, size] in 0..255."""
    faces = np.stack([draw_face(seed, i, W300, size=size)[0] for i in range(count)])
    return torch.from_numpy(faces).permute(0, 3, 1, 2).float().contiguous()


def compare(run: Run, reference: Deployed, number_format: NumberFormat) -> Parity:
    """Runs a file and the `reference`, in float32, on batches of drawn faces.

    Where the two highest values of a heatmap are closer than twice the limit of float32, rounding may choose either:
    those landmarks are left out."""
    differences, shifts, clear = zip(*_differences(run, reference), strict=True)
    compared = torch.cat(shifts)[torch.cat(clear)]
    return Parity(
        number_format=number_format,
        heatmap=torch.stack(differences).amax().item(),
        pixels=compared.amax().item() if len(compared) else 0.0,
        mean_pixels=compared.mean().item() if len(compared) else 0.0,
        compared=len(compared),
        landmarks=len(torch.cat(clear)),
    )


@torch.no_grad()
def _differences(run: Run, reference: Deployed) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each batch: the largest difference of values, the shifts [B * K] in input px, and which of them count."""
    for batch in BATCHES:
        pictures = draw_pictures(batch, reference.network.config.input_size, seed=batch)
        heatmaps = reference.heatmaps(pictures)
        points, scores = _decode(heatmaps, reference)
        got = run(pictures)
        got = [got] if isinstance(got, torch.Tensor) else got
        found, _ = got if reference.decode else _decode(got[0], reference)
        difference = (got[1] - scores if reference.decode else got[0] - heatmaps).abs().amax()
        first, second = heatmaps.flatten(2).topk(2).values.unbind(-1)
        yield difference, (found - points).norm(dim=-1).flatten(), (first - second > 2 * LIMITS["fp32"]).flatten()


def _decode(heatmaps: torch.Tensor, reference: Deployed) -> tuple[torch.Tensor, torch.Tensor]:
    """By the op that the package itself uses."""
    points, scores = ops.decode_heatmaps(heatmaps, radius=reference.radius)
    return from_heatmap(points, reference.network.config.stride), scores
