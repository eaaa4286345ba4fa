"""Landmarks for the faces of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from iact.capture import PictureGraph
from iact.checkpoint import Description, load_weights
from iact.detector import Detector, detect_faces, to_landmark_boxes
from iact.errors import InputError
from iact.geometry import crop_matrix, cut
from iact.inference import find_device, find_precision, predict_arrays
from iact.layouts import Layout
from iact.model import IACT, fold

FAR = 1e9  # px that no box is away
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PredictedFace:
    """One face: `box` (x0, y0, x1, y1) that it was cut by, `landmarks` [K, 2], both image px, `scores` [K] (the
    heatmaps' maxima, from 0 to about 1: the surer the network, the higher)."""

    box: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray


class Predictor:
    """A trained model, ready for images: `Predictor.from_pretrained("runs/x")(image)`. Threads may share one.

    On a GPU a single face goes through the network as a CUDA graph, from the fourth call on."""

    def __init__(
        self,
        model: IACT,
        description: Description,
        device: str = "auto",
        dtype: torch.dtype | Literal["auto"] = "auto",
        detector: Detector = detect_faces,
    ):
        self.device = find_device(device)
        self.dtype = _find_dtype(dtype, self.device)
        model = model.to(self.device, memory_format=torch.channels_last).eval()
        self.model = PictureGraph(model) if self.device.type == "cuda" else model
        self.description = description
        self.detector = detector

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: str = "auto",
        dtype: torch.dtype | Literal["auto"] = "auto",
        detector: Detector = detect_faces,
    ) -> "Predictor":
        """The predictor of a weights file or a run folder.

        `dtype` is what the network computes in: torch.float32, bfloat16 or float16, or "auto", which is bfloat16 on
        GPUs and CPUs that compute in it, else float32. `detector` finds faces where no boxes are given: any
        function from an RGB image to landmark boxes [N, 4], such as `iact.detector.YuNet(model_file)`. InputError when
        there are no weights, or they are damaged, or the device or dtype is of no use."""
        model, description = load_weights(Path(path_or_name))
        return cls(fold(model), description, device=device, dtype=dtype, detector=detector)

    @property
    def layout(self) -> Layout:
        return self.description.layout

    @overload
    def __call__(
        self, image: np.ndarray, boxes: Sequence | np.ndarray | None = None, flip_test: bool = False
    ) -> list[PredictedFace]: ...

    @overload
    def __call__(
        self, image: Sequence[np.ndarray], boxes: Sequence | None = None, flip_test: bool = False
    ) -> list[list[PredictedFace]]: ...

    def __call__(self, image, boxes=None, flip_test=False):
        """The faces of an RGB image uint8 [H, W, 3]: those in `boxes` [N, 4] (x0, y0, x1, y1, tight around the
        landmarks), in their order, or those that the detector finds, largest first; none where it finds none.

        A list or tuple of images gives a list of faces for each; `boxes` then holds boxes or None for each. All faces
        go through the network together. `flip_test` averages with the mirrored picture. InputError for an image or a
        box of no use."""
        if not isinstance(image, (list, tuple)):
            return self._predict([self._cut(image, boxes)], flip_test)[0]
        boxes = [None] * len(image) if boxes is None else boxes
        if len(boxes) != len(image):
            raise InputError(f"boxes: expected one entry for each of {len(image)} images, got {len(boxes)}")
        cuts = []
        for index, pair in enumerate(zip(image, boxes, strict=True)):
            try:
                cuts.append(self._cut(*pair))
            except InputError as error:
                raise InputError(f"image {index} of {len(image)}: {error}") from None
        return self._predict(cuts, flip_test)

    def _cut(self, image: np.ndarray, boxes: Sequence | np.ndarray | None) -> "_Cut":
        """The faces of one image, ready for the network."""
        _check_image(image)
        boxes = self._detect(image) if boxes is None else _check_boxes(boxes, image)
        size = self.model.config.input_size
        matrices = np.array([crop_matrix(box, size) for box in boxes]).reshape(-1, 2, 3)
        pictures = np.array([cut(image, matrix, size) for matrix in matrices], np.uint8).reshape(-1, size, size, 3)
        return _Cut(boxes, matrices, pictures)

    def _detect(self, image: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] where the detector has the layout's landmarks, but for those without an area or outside the
        image. InputError where it gives no boxes."""
        found = np.atleast_2d(np.asarray(self.detector(image), np.float64))
        if found.size and found.shape[1:] != (4,):
            raise InputError(f"detector: expected boxes [N, 4] (x0, y0, x1, y1), got shape {found.shape}")
        faces = found.reshape(-1, 4)
        faces = faces[(np.abs(faces) < FAR).all(axis=1) & (faces[:, 2:] > faces[:, :2]).all(axis=1)]
        boxes = to_landmark_boxes(faces, self.layout.box_in_face)
        height, width = image.shape[:2]
        return boxes[(boxes[:, 2:] > 0).all(axis=1) & (boxes[:, :2] < (width, height)).all(axis=1)]

    def _predict(self, cuts: list["_Cut"], flip_test: bool) -> list[list[PredictedFace]]:
        """The faces of each image."""
        if not any(len(one.boxes) for one in cuts):
            return [[] for _ in cuts]
        landmarks, scores = predict_arrays(
            self.model,
            torch.from_numpy(np.concatenate([one.pictures for one in cuts])).permute(0, 3, 1, 2),
            np.concatenate([one.matrices for one in cuts]),
            self.layout,
            sigma=self.description.sigma,
            flip_test=flip_test,
            dtype=self.dtype,
        )
        found = iter(zip(landmarks, scores, strict=True))
        return [[PredictedFace(box, *next(found)) for box in one.boxes] for one in cuts]


@dataclass(frozen=True)
class _Cut:
    """The faces of an image: boxes [N, 4], the maps [N, 2, 3] from image px to input px, pictures [N, S, S, 3]."""

    boxes: np.ndarray
    matrices: np.ndarray
    pictures: np.ndarray


def _find_dtype(dtype: torch.dtype | Literal["auto"], device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None."""
    if dtype == "auto":
        return find_precision("auto", device)
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected auto, {', '.join(map(str, DTYPES))}, got {dtype!r}")
    return None if dtype == torch.float32 else dtype


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected RGB uint8 [H, W, 3], got {got}")
    if image.size == 0:
        raise InputError(f"image: expected at least one pixel, got {image.shape}")


def _check_boxes(boxes: Sequence | np.ndarray, image: np.ndarray) -> np.ndarray:
    try:
        boxes = np.asarray(boxes, np.float64).copy()  # the faces keep it
    except (RuntimeError, TypeError, ValueError):  # the first is a tensor's that has gradients
        raise InputError(f"boxes: expected numbers [N, 4] (x0, y0, x1, y1), got {boxes!r}") from None
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes: expected [N, 4] (x0, y0, x1, y1), got shape {boxes.shape}")
    height, width = image.shape[:2]
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        if not (np.abs(boxes[i]) < FAR).all():
            raise InputError(f"boxes: box {i} should hold finite numbers below {FAR:.0e}, got {boxes[i].tolist()}")
        if not (x1 > x0 and y1 > y0):
            raise InputError(f"boxes: box {i} is empty: expected x0 < x1 and y0 < y1, got {boxes[i].tolist()}")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise InputError(f"boxes: box {i} lies outside the {width} x {height} image: {boxes[i].tolist()}")
    return boxes
