"""Landmarks for the faces of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iact.checkpoint import Description, load_weights
from iact.detector import detect_faces
from iact.errors import InputError
from iact.geometry import crop_matrix, cut
from iact.inference import Precision, find_device, find_precision, predict_cuts
from iact.layouts import Layout
from iact.model import IACT, fold


@dataclass(frozen=True)
class PredictedFace:
    """One face: `box` (x0, y0, x1, y1) that it was cut by, `landmarks` [K, 2], both image px, `scores` [K] (the
    heatmaps' maxima, from 0 to about 1: the surer the network, the higher)."""

    box: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray


class Predictor:
    """A trained model, ready for images: `Predictor.from_pretrained("runs/x")(image)`."""

    def __init__(self, model: IACT, description: Description, device: str = "auto", amp: Precision = "auto"):
        self.device = find_device(device)
        self.dtype = find_precision(amp, self.device)
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()
        self.description = description

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, device: str = "auto", amp: Precision = "auto") -> "Predictor":
        """The predictor of a weights file or a run folder. InputError when there is none or it is damaged."""
        model, description = load_weights(Path(path_or_name))
        return cls(fold(model), description, device=device, amp=amp)

    @property
    def layout(self) -> Layout:
        return self.description.layout

    def __call__(
        self, image: np.ndarray, boxes: Sequence | np.ndarray | None = None, flip_test: bool = False
    ) -> list[PredictedFace]:
        """The faces of an RGB image uint8 [H, W, 3]: those in `boxes` [N, 4] (x0, y0, x1, y1, tight around the
        landmarks), in their order, or those that the detector finds, largest first; none where it finds none.

        `flip_test` averages with the mirrored picture. InputError for an image or a box of no use."""
        _check_image(image)
        boxes = detect_faces(image) if boxes is None else _check_boxes(boxes, image)
        if not len(boxes):
            return []
        size = self.model.config.input_size
        matrices = np.stack([crop_matrix(box, size) for box in boxes])
        crops = np.stack([cut(image, matrix, size) for matrix in matrices])
        landmarks, scores = predict_cuts(
            self.model,
            torch.from_numpy(crops).permute(0, 3, 1, 2),
            matrices,
            self.layout,
            sigma=self.description.sigma,
            flip_test=flip_test,
            dtype=self.dtype,
        )
        return [PredictedFace(*face) for face in zip(boxes, landmarks, scores, strict=True)]


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected RGB uint8 [H, W, 3], got {got}")
    if image.size == 0:
        raise InputError(f"image: expected at least one pixel, got {image.shape}")


def _check_boxes(boxes: Sequence | np.ndarray, image: np.ndarray) -> np.ndarray:
    try:
        boxes = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"boxes: expected numbers [N, 4] (x0, y0, x1, y1), got {boxes!r}") from None
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes: expected [N, 4] (x0, y0, x1, y1), got shape {boxes.shape}")
    height, width = image.shape[:2]
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        if not (np.abs(boxes[i]) < 1e9).all():
            raise InputError(f"boxes: box {i} should hold finite numbers below 1e9, got {boxes[i].tolist()}")
        if not (x1 > x0 and y1 > y0):
            raise InputError(f"boxes: box {i} is empty: expected x0 < x1 and y0 < y1, got {boxes[i].tolist()}")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise InputError(f"boxes: box {i} lies outside the {width} x {height} image: {boxes[i].tolist()}")
    return boxes
