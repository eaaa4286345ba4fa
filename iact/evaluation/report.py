"""The errors of one system on one split, and the protocol they were measured under."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from iact import metrics
from iact.cost import Cost
from iact.data.faces import Faces
from iact.data.w300 import SPLIT_PARTS
from iact.errors import InputError
from iact.layouts import W300, Layout

THRESHOLD = 10.0  # percent: the 0.1 of FR@0.1 and AUC@0.1
MOST = 1000.0  # percent: the error curve is sampled up to the threshold, every 0.01
PERCENTILES = (50, 90, 95, 99)
NUM_WORST = 24
OCULAR = "interocular"


@dataclass(frozen=True)
class Protocol:
    """What a number depends on besides the model. `missing` are sentences on what the split should hold but does not.

    `weights` names the file and how it was chosen, for instance "best epoch 87, chosen on 300w common", or the file of
    predictions and how it was read; `flip_test` is None where the file does not tell."""

    data_set: str
    split: str
    box_rule: str
    flip_test: bool | None
    weights: str
    faces: int
    missing: tuple[str, ...]
    normalisers: tuple[str, ...]

    @classmethod
    def of(cls, faces: Faces, *, data_set: str, box_rule: str, flip_test: bool | None, weights: str) -> "Protocol":
        """The protocol for these faces: split, number of faces, what is missing and the normalisers are theirs."""
        normalisers = tuple(_describe(name, faces.layout) for name in normalisers_of(faces.layout))
        return cls(data_set, faces.split, box_rule, flip_test, weights, len(faces), faces.missing, normalisers)


@dataclass(frozen=True, eq=False)
class Report:
    """The errors of one system on one split.

    `predicted` [N, K, 2] is in image px, NaN for a face that was not found. `errors` are the NME [N] in percent by each
    normaliser ("interocular", "interpupil", "box"): infinite for a face that was not found, NaN for one left out, as
    that normaliser is useless on it. `per_landmark` [K] is in percent of the inter-ocular distance. `tags` name the
    subsets that a face is in; `results` (all faces) and `subsets` (one per tag) hold the numbers of `to_json`."""

    protocol: Protocol
    faces: Faces
    predicted: np.ndarray
    tags: tuple[frozenset[str], ...]
    errors: dict[str, np.ndarray]
    per_landmark: np.ndarray
    results: dict
    subsets: dict[str, dict]
    thresholds: tuple[float, ...]
    cost: Cost | None = None

    @property
    def layout(self) -> Layout:
        return self.faces.layout

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(face.name for face in self.faces.records)

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of the faces left out of each NME: their normaliser is too near zero (`metrics.usable_normaliser`)."""
        names = self.names
        return {key: [names[index] for index in np.flatnonzero(np.isnan(nme))] for key, nme in self.errors.items()}

    @property
    def not_found(self) -> list[str]:
        """Names of the faces that the system did not find: failures at any threshold, and in no mean."""
        names = self.names
        return [names[index] for index in np.flatnonzero(np.isnan(self.predicted).any(axis=(1, 2)))]

    @property
    def worst(self) -> list[int]:
        """The found faces with the largest inter-ocular NME, worst first."""
        nme = self.errors[OCULAR]
        order = np.argsort(np.where(np.isfinite(nme), -nme, np.inf), kind="stable")[:NUM_WORST]
        return [int(index) for index in order if np.isfinite(nme[index])]

    def to_json(self) -> dict:
        """Everything but the errors of each face. NME, FR and percentiles in percent, AUC 0 to 1; FR and AUC without
        the name of a normaliser, percentiles and per-landmark errors are inter-ocular; NME and percentiles are of the
        faces that were found; `faces` counts all; None where no face counts."""
        ocular = self.errors[OCULAR]
        percentiles = np.percentile(ocular[np.isfinite(ocular)], PERCENTILES).tolist()
        names = self.names
        return {
            **self.results,
            "percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
            "subsets": self.subsets,
            "left_out": self.left_out,
            "not_found": self.not_found,
            "worst": [{"name": names[index], "nme_interocular": float(ocular[index])} for index in self.worst],
            "per_landmark": self.per_landmark.tolist(),
            "cost": asdict(self.cost) if self.cost else None,
            "protocol": asdict(self.protocol),
        }


def evaluate_predictions(
    predicted: np.ndarray,
    faces: Faces,
    protocol: Protocol,
    *,
    found: np.ndarray | None = None,
    thresholds: Sequence[float] = (THRESHOLD,),
    cost: Cost | None = None,
) -> Report:
    """The report on predictions [N, K, 2] (image px) for these faces, in their order.

    `found` [N] is false where the system did not find the face and what it predicted is not looked at; `thresholds`
    (percent) are those of FR and AUC. InputError when shapes or counts differ, a prediction is not finite, a threshold
    is out of range, or no face counts."""
    check_thresholds(thresholds)
    if protocol.faces != len(faces):
        raise InputError(f"protocol: expected {len(faces)} faces, got {protocol.faces}")
    if not len(faces):
        raise InputError(f"faces: expected at least one face to evaluate in split {faces.split!r}, got none")
    truth = np.stack([face.landmarks for face in faces.records])
    found = np.ones(len(faces), bool) if found is None else found
    if not found.any():
        raise InputError(f"predicted: expected predictions, but none of the {len(faces)} faces was found")
    distances, predicted = _distances(predicted, truth, found)
    normalisers = {name: _usable(measure(truth, faces.layout), truth) for name, measure in _MEASURES.items()}
    normalisers = {name: normalisers[name] for name in normalisers_of(faces.layout)}
    relative = 100 * distances / normalisers[OCULAR][:, None]
    counted = np.isfinite(relative).all(axis=1)
    if not counted.any():
        raise InputError(f"faces: none of the {found.sum()} faces found has a usable inter-ocular distance")
    errors = {name: 100 * distances.mean(axis=1) / normaliser for name, normaliser in normalisers.items()}
    tags = _tags(faces)
    subsets = {tag: np.array([tag in own for own in tags]) for tag in sorted(frozenset().union(*tags))}
    return Report(
        protocol=protocol,
        faces=faces,
        predicted=predicted,
        tags=tags,
        errors=errors,
        per_landmark=relative[counted].mean(axis=0),
        results=_summarise(errors, np.ones(len(faces), bool), thresholds),
        subsets={tag: _summarise(errors, chosen, thresholds) for tag, chosen in subsets.items()},
        thresholds=tuple(thresholds),
        cost=cost,
    )


def check_thresholds(thresholds: Sequence[float]) -> None:
    """InputError unless each is above zero and at most `MOST` percent, and none there twice under one name."""
    for threshold in thresholds:
        if not 0 < threshold <= MOST:
            raise InputError(f"thresholds: expected percent above zero, at most {MOST:g}, got {threshold}")
    if len({key_of("fr", threshold) for threshold in thresholds}) < len(thresholds):
        raise InputError(f"thresholds: expected each once, got {list(thresholds)}")


def normalisers_of(layout: Layout) -> tuple[str, ...]:
    """The normalisers of a layout; where it has no pupils of its own, the inter-pupil distance is the inter-ocular one
    and not named again."""
    own_pupils = (layout.left_pupil, layout.right_pupil) != tuple((corner,) for corner in layout.eye_corners)
    return (OCULAR, "interpupil", "box") if own_pupils else (OCULAR, "box")


def key_of(metric: str, threshold: float, normaliser: str = OCULAR) -> str:
    """The name of a metric in the files: "fr_0.1", or "auc_0.08_interpupil"."""
    return f"{metric}_{threshold / 100:g}" + ("" if normaliser == OCULAR else f"_{normaliser}")


_MEASURES = {
    OCULAR: metrics.interocular,
    "interpupil": metrics.interpupil,
    "box": lambda truth, layout: metrics.box_size(truth),
}


def _distances(predicted: np.ndarray, truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N, K], infinite where not found, and the predictions, NaN there."""
    predicted = np.array(predicted, np.float64)
    if predicted.shape != truth.shape:
        raise InputError(f"predicted: expected the shape of truth, {truth.shape}, got {predicted.shape}")
    distances = metrics.landmark_distances(np.where(found[:, None, None], predicted, 0), truth)
    predicted[~found], distances[~found] = np.nan, np.inf
    return distances, predicted


def _summarise(errors: dict[str, np.ndarray], chosen: np.ndarray, thresholds: Sequence[float]) -> dict:
    """The numbers of the chosen faces [N]: each is a mean over faces, so its interval is that of a mean, or of a share:
    where no face fails the bootstrap would have none."""
    values: dict[str, np.ndarray] = {}
    for normaliser, nme in errors.items():
        counted = nme[chosen & ~np.isnan(nme)]
        values[f"nme_{normaliser}"] = counted[np.isfinite(counted)]
        for threshold in thresholds:
            for metric, of_each in (("fr", metrics.failures), ("auc", metrics.areas)):
                each = of_each(counted, threshold) if len(counted) else counted
                values[key_of(metric, threshold, normaliser)] = each
    intervals = {key: _interval(key, each) if len(each) else None for key, each in values.items()}
    numbers = {key: float(each.mean()) if len(each) else None for key, each in values.items()}
    return {"faces": int(chosen.sum()), **numbers, "intervals_95": intervals}


def _interval(key: str, values: np.ndarray) -> list[float]:
    return list((metrics.rate_interval if key.startswith("fr_") else metrics.bootstrap_interval)(values))


def _tags(faces: Faces) -> tuple[frozenset[str], ...]:
    """The data set's attributes of each face; of 300W's full set, the part of it that papers report."""
    if not (faces.layout is W300 and faces.split == "full"):
        return tuple(face.tags for face in faces.records)
    part_of = {part: split for split in ("common", "challenging") for part in SPLIT_PARTS[split]}
    parts = [part_of.get(face.name.rpartition("/")[0]) for face in faces.records]
    return tuple(face.tags | ({part} if part else set()) for face, part in zip(faces.records, parts, strict=True))


def _describe(normaliser: str, layout: Layout) -> str:
    if normaliser == OCULAR:
        first, second = (layout.names[corner] for corner in layout.eye_corners)
        return f"inter-ocular: landmarks {first} and {second}"
    if normaliser == "interpupil":
        return f"inter-pupil: {_pupil_text(layout, layout.left_pupil)} and {_pupil_text(layout, layout.right_pupil)}"
    return "box: sqrt(width x height) of the box around the true landmarks"


def _pupil_text(layout: Layout, pupil: tuple[int, ...]) -> str:
    names = [layout.names[landmark] for landmark in pupil]
    return f"landmark {names[0]}" if len(names) == 1 else f"mean of landmarks {', '.join(names)}"


def _usable(normaliser: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.where(metrics.usable_normaliser(normaliser, truth), normaliser, np.nan)
