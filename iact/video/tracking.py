"""Following faces from frame to frame: each is looked for where its landmarks were, the detector helps where needed."""

from dataclasses import dataclass

import numpy as np

from iact.detector import to_landmark_boxes
from iact.geometry import landmark_box
from iact.predictor import PredictedFace, Predictor

# Mean score below which a face that was followed counts as lost unless the detector finds it. With weights trained on
# 300W, in 60 pictures of WFLW: 5 % of the annotated faces lie below, the hardest, and 96 % of 720 boxes put elsewhere.
# Weights that are less sure of everything call the detector more often, and find no fewer faces.
LEAST_SCORE = 0.55
DETECT_EVERY = 15  # frames
PATIENCE = 15  # frames that a lost face keeps its number
SAME_FACE = 0.4  # overlap (IoU) of the squares around landmarks


@dataclass(frozen=True)
class TrackedFace(PredictedFace):
    """A face of a frame; `id` counts from 0 and stays with the face for as long as it is followed."""

    id: int


@dataclass
class _Track:
    """Where a face is looked for next, (x0, y0, x1, y1), and for how many frames it has not been seen."""

    box: np.ndarray
    missed: int = 0


class Tracker:
    """Faces of a video's frames, given in order: `tracker = Tracker(predictor); faces = tracker(image)`.

    The box of a face is the square around its landmarks in the frame before; all faces go through the network together.
    The detector looks at every `detect_every`-th frame, and where no face is followed or one scores, in the mean, less
    than `least_score`: that one goes on only if the detector sees it, and is forgotten `PATIENCE` frames after. Of two
    that have come to lie on one face, the one followed for longer stays."""

    def __init__(
        self,
        predictor: Predictor,
        flip_test: bool = False,
        least_score: float = LEAST_SCORE,
        detect_every: int = DETECT_EVERY,
    ):
        self.predictor, self.flip_test = predictor, flip_test
        self.least_score, self.detect_every = least_score, detect_every
        self._tracks: dict[int, _Track] = {}
        self._next_id, self._since_detection = 0, 0

    def __call__(self, image: np.ndarray) -> list[TrackedFace]:
        """The faces of the next frame, an RGB image uint8 [H, W, 3], by `id`. InputError for another kind of image."""
        faces = self._follow(image)
        self._since_detection += 1
        if len(faces) < max(1, len(self._tracks)) or self._since_detection >= self.detect_every:
            self._detect(image, faces)
            self._since_detection = 0
        self._remember(faces, image)
        return [TrackedFace(face.box, face.landmarks, face.scores, id) for id, face in sorted(faces.items())]

    def _follow(self, image: np.ndarray) -> dict[int, PredictedFace]:
        """The faces found where they were, by number; those that lie on one before them are given up, and those that
        were where a frame of another size has nothing."""
        if isinstance(image, np.ndarray) and image.ndim == 3:  # the predictor says what is wrong with others
            self._tracks = {id: track for id, track in self._tracks.items() if _inside(track.box, image)}
        if not self._tracks:
            return {}
        found = self.predictor(image, [track.box for track in self._tracks.values()], flip_test=self.flip_test)
        faces: dict[int, PredictedFace] = {}
        for id, face in zip(list(self._tracks), found, strict=True):
            if face.scores.mean() >= self.least_score:
                if _overlapping(face, _boxes(faces)) is None:
                    faces[id] = face
                else:
                    del self._tracks[id]
        return faces

    def _detect(self, image: np.ndarray, faces: dict[int, PredictedFace]) -> None:
        """Adds what the detector finds: lost faces under their old number, then new ones."""
        for face in self.predictor(image, flip_test=self.flip_test):
            if _overlapping(face, _boxes(faces)) is not None:
                continue
            lost = {id: track.box for id, track in self._tracks.items() if id not in faces}
            id = _overlapping(face, lost)
            if id is None:
                id, self._next_id = self._next_id, self._next_id + 1
            faces[id] = face

    def _remember(self, faces: dict[int, PredictedFace], image: np.ndarray) -> None:
        """Moves the boxes to where the faces are now, and forgets faces that have left or were lost for too long."""
        tracks = {id: _Track(track.box, track.missed + 1) for id, track in self._tracks.items()}
        tracks |= {id: _Track(box) for id, box in _boxes(faces).items()}
        kept = (id for id, track in tracks.items() if track.missed <= PATIENCE and _inside(track.box, image))
        self._tracks = {id: tracks[id] for id in sorted(kept)}


def _boxes(faces: dict[int, PredictedFace]) -> dict[int, np.ndarray]:
    return {id: landmark_square(face.landmarks) for id, face in faces.items()}


def landmark_square(landmarks: np.ndarray) -> np.ndarray:
    """The square (x0, y0, x1, y1) around landmarks [K, 2], with the centre and the larger side of their tight box: what
    a face is cut by, which has an area though its landmarks lie on a line."""
    return to_landmark_boxes(landmark_box(landmarks)[None], (0.0, 0.0, 1.0))[0]


def _overlapping(face: PredictedFace, boxes: dict[int, np.ndarray]) -> int | None:
    """The number of the box that overlaps the square around the face's landmarks most, if any does enough."""
    if not boxes:
        return None
    square = landmark_square(face.landmarks)
    overlaps = {id: overlap(square, other) for id, other in boxes.items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= SAME_FACE else None


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union, 0 to 1, of two boxes (x0, y0, x1, y1)."""
    inner = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None).prod()
    union = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - inner
    return float(inner / union) if union > 0 else 0.0


def _inside(box: np.ndarray, image: np.ndarray) -> bool:
    """Whether the box has an area of a pixel or more, and some of it lies in the image."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    return bool(min(x1 - x0, y1 - y0) >= 1 and x1 > 0 and y1 > 0 and x0 < width and y0 < height)
