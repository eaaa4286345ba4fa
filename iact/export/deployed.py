"""What an exported file computes, and what it says of itself."""

import torch
from torch import nn

from iact import heatmaps as codec
from iact.checkpoint import Description
from iact.geometry import CROP_MARGIN, from_heatmap
from iact.model import IACT, fold, normalise

PICTURES = "pictures"  # the file's input


class Deployed(nn.Module):
    """The network from pictures as they are, RGB float32 [B, 3, S, S] in 0..255, to heatmaps float32 [B, K, H, W]; with
    `decode`, to landmarks [B, K, 2] in input px and scores [B, K]. Batch normalisation is folded."""

    def __init__(self, model: IACT, sigma: float, decode: bool):
        super().__init__()
        self.network, self.radius, self.decode = fold(model), codec.window_radius(sigma), decode
        self.eval()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the results are called, in order."""
        return ("landmarks", "scores") if self.decode else ("heatmaps",)

    def heatmaps(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, K, H, W], float32 whatever the network computes in."""
        return self.network(normalise(pictures).to(next(self.network.parameters()).dtype)).float()

    def landmarks(self, heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Landmarks [B, K, 2] in input px and scores [B, K]: the reference of `iact.ops.decode_heatmaps`, in operators
        that every format knows."""
        points, scores = codec.decode_heatmaps(heatmaps, "window", self.radius, k=1)
        return from_heatmap(points, self.network.config.stride), scores

    def forward(self, pictures: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        heatmaps = self.heatmaps(pictures)
        return self.landmarks(heatmaps) if self.decode else heatmaps


def example(deployed: Deployed) -> torch.Tensor:
    """Pictures [2, 3, S, S] to trace the network with."""
    size = deployed.network.config.input_size
    return torch.linspace(0, 255, 2 * 3 * size * size).reshape(2, 3, size, size)


def describe(description: Description) -> dict[str, str]:
    """What users of a file need to cut faces and to read its results: sizes in px, sigma in heatmap px."""
    return {
        "layout": description.layout.name,
        "num_landmarks": str(description.layout.num_landmarks),
        "input": "RGB, float32, 0 to 255, contiguous [batch, 3, input_size, input_size]",
        "input_size": str(description.model.input_size),
        "margin": f"{CROP_MARGIN} (side of the square cut over the larger side of the box around the landmarks)",
        "sigma": str(description.sigma),
        "stride": str(description.model.stride),
        "coordinates": "(x, y) px, the centre of the first pixel is (0, 0)",
        "trained_on": description.trained_on,
        "epoch": str(description.epoch),
    }
