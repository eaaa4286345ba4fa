"""How far a model can be trusted: its error on the same faces while one condition gets worse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch

from iact import Predictor, metrics
from iact.data.faces import Face, Faces
from iact.detector import detect_faces
from iact.evaluation import THRESHOLD
from iact.geometry import crop_matrix, cut, landmark_box, transform_points
from iact.inference import predict_arrays


@dataclass(frozen=True)
class Sample:
    """A picture uint8 [H, W, 3], the landmarks [K, 2] of its face, and the box (x0, y0, x1, y1) to cut it by."""

    image: np.ndarray
    landmarks: np.ndarray
    box: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, landmarks: np.ndarray) -> "Sample":
        return cls(image, landmarks, landmark_box(landmarks))

    @property
    def side(self) -> float:
        return float(max(self.box[2:] - self.box[:2]))


Change = Callable[[Sample], Sample]


def tilt(sample: Sample, degrees: float) -> Sample:
    """The head turned in the plane of the picture; the box is upright around it, as a detector's would be."""
    x, y = sample.landmarks.mean(axis=0)
    height, width = sample.image.shape[:2]
    matrix = cv2.getRotationMatrix2D((x, y), degrees, 1.0)
    image = cv2.warpAffine(sample.image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return Sample.of(image, transform_points(sample.landmarks, matrix))


def shrink(sample: Sample, side: float) -> Sample:
    """The whole picture made smaller, so that the face is that many px wide."""
    ratio = side / sample.side
    height, width = (max(1, round(length * ratio)) for length in sample.image.shape[:2])
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA)
    ratios = np.array([width / sample.image.shape[1], height / sample.image.shape[0]])
    return Sample.of(image, (sample.landmarks + 0.5) * ratios - 0.5)


def blur(sample: Sample, percent: float) -> Sample:
    """Out of focus: a Gaussian whose sigma is that share of the face."""
    return Sample(cv2.GaussianBlur(sample.image, (0, 0), sample.side * percent / 100), sample.landmarks, sample.box)


def darken(sample: Sample, percent: float) -> Sample:
    """As little light as that, with the steps of 8 bits."""
    return Sample((sample.image * (percent / 100)).astype(np.uint8), sample.landmarks, sample.box)


def add_noise(sample: Sample, spread: float) -> Sample:
    noise = np.random.default_rng(0).normal(0, spread, sample.image.shape)
    return Sample(np.clip(sample.image + noise, 0, 255).astype(np.uint8), sample.landmarks, sample.box)


def cover(sample: Sample, percent: float) -> Sample:
    """The lower part of the face behind a light grey mask."""
    x0, y0, x1, y1 = sample.box
    corners = np.round([[x0, y1 - (y1 - y0) * percent / 100], [x1, y1]]).astype(int)
    image = cv2.rectangle(sample.image.copy(), *map(tuple, corners.tolist()), (200, 205, 210), cv2.FILLED)
    return Sample(image, sample.landmarks, sample.box)


def shift_box(sample: Sample, percent: float) -> Sample:
    """The box beside the face by that share of its side, to one of eight sides."""
    angle = np.pi / 4 * (int(sample.landmarks[0, 0]) % 8)
    shift = sample.side * percent / 100 * np.array([np.cos(angle), np.sin(angle)])
    return Sample(sample.image, sample.landmarks, sample.box + np.tile(shift, 2))


def resize_box(sample: Sample, percent: float) -> Sample:
    centre, half = (sample.box[:2] + sample.box[2:]) / 2, (sample.box[2:] - sample.box[:2]) / 2 * percent / 100
    return Sample(sample.image, sample.landmarks, np.concatenate([centre - half, centre + half]))


CONDITIONS: dict[str, tuple[Callable[[Sample, float], Sample], Sequence[float]]] = {
    "head tilted, degrees": (tilt, (15, 30, 45, 60, 90, 180)),
    "face, px wide": (shrink, (128, 64, 32, 24, 16)),
    "out of focus, % of the face": (blur, (1, 2, 3, 5, 8)),
    "light, %": (darken, (50, 25, 10, 5, 2)),
    "noise, of 255": (add_noise, (10, 25, 50, 80)),
    "covered from below, %": (cover, (20, 40, 60)),
    "box beside the face, %": (shift_box, (5, 10, 20, 30)),
    "box, % of the face": (resize_box, (70, 85, 115, 130, 160)),
}


def predict_samples(predictor: Predictor, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks [N, K, 2] in px of each sample's picture, and scores [N, K]."""
    size = predictor.model.config.input_size
    matrices = np.stack([crop_matrix(sample.box, size) for sample in samples])
    cuts = np.stack([cut(sample.image, matrix, size) for sample, matrix in zip(samples, matrices, strict=True)])
    settings = {"sigma": predictor.description.sigma, "dtype": predictor.dtype}
    return predict_arrays(
        predictor.model, torch.from_numpy(cuts).permute(0, 3, 1, 2), matrices, predictor.layout, **settings
    )


def measure(predictor: Predictor, samples: Sequence[Sample]) -> dict[str, float]:
    """NME and FR (inter-ocular, %) and the mean score."""
    truth = np.stack([sample.landmarks for sample in samples])
    predicted, scores = predict_samples(predictor, samples)
    nme = metrics.nme(predicted, truth, metrics.interocular(truth, predictor.layout))
    return {"nme": float(nme.mean()), "fr": metrics.failure_rate(nme, THRESHOLD), "score": float(scores.mean())}


def measure_limits(predictor: Predictor, faces: Faces) -> list[dict]:
    """One row for the faces as they are, and one for each strength of each condition."""
    samples = [Sample.of(face.image.read(), face.landmarks) for face in faces.records]
    rows = [{"condition": "as they are", "strength": None, **measure(predictor, samples)}]
    for name, (change, strengths) in CONDITIONS.items():
        for strength in strengths:
            changed = list(map(partial(_changed, change, strength), samples))
            rows.append({"condition": name, "strength": strength, **measure(predictor, changed)})
    return rows


def _changed(change: Callable[[Sample, float], Sample], strength: float, sample: Sample) -> Sample:
    return change(sample, strength)


def measure_detector(predictor: Predictor, faces: Faces) -> dict[str, float]:
    """The error with the detector's boxes: the share of faces that it finds, and NME and FR (%) of those."""
    found = [sample for face in faces.records if (sample := _detected(face)) is not None]
    return {"found": 100 * len(found) / len(faces), **measure(predictor, found)}


def _detected(face: Face) -> Sample | None:
    """The face with the detector's box: the one whose middle is nearest to its own, if that lies within it."""
    own, image = Sample.of(face.image.read(), face.landmarks), face.image.read()
    middle = (own.box[:2] + own.box[2:]) / 2
    boxes = detect_faces(image)
    away = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - middle, axis=1)
    if not len(boxes) or away.min() > own.side / 2:
        return None
    return Sample(image, face.landmarks, boxes[away.argmin()])
