"""How wrong landmarks are: normalised mean error, failure rate, area under the error curve, and how sure one may be.

NME and thresholds are in percent of the normaliser. NME is a mean *per face*: pooling the landmarks of all faces, as
some do, gives another number as soon as faces count different landmarks."""

from collections.abc import Callable

import numpy as np
from scipy.integrate import simpson

from iact.errors import InputError
from iact.layouts import Layout

AUC_STEP = 0.01  # percent between two samples of the error curve: the field's 1e-4
LEAST_NORMALISER = 1e-3  # of the larger side of the landmark box, see `usable_normaliser`


def nme(predicted: np.ndarray, truth: np.ndarray, normaliser: np.ndarray) -> np.ndarray:
    """Mean distance between predicted and true landmarks, each [N, K, 2], over the normaliser [N]: [N] in percent.

    InputError when shapes differ, a number is not finite, or a normaliser is not above zero (profile faces: choose
    the faces with `usable_normaliser` and report the others)."""
    return 100 * landmark_distances(predicted, truth).mean(axis=1) / _check_normaliser(normaliser, len(truth))


def landmark_distances(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distances [N, K] in px between landmarks [N, K, 2]; InputError when shapes differ or a number is not finite."""
    predicted, truth = _check_landmarks(predicted, "predicted"), _check_landmarks(truth, "truth")
    if predicted.shape != truth.shape:
        raise InputError(f"predicted: expected the shape of truth, {truth.shape}, got {predicted.shape}")
    return np.linalg.norm(predicted - truth, axis=-1)


def interocular(truth: np.ndarray, layout: Layout) -> np.ndarray:
    """Distance [N] between the outer eye corners of landmarks [N, K, 2]."""
    truth = _check_landmarks(truth, "truth", layout)
    left, right = layout.eye_corners
    return np.linalg.norm(truth[:, left] - truth[:, right], axis=-1)


def interpupil(truth: np.ndarray, layout: Layout) -> np.ndarray:
    """Distance [N] between the pupils of landmarks [N, K, 2]; a pupil is the mean of the landmarks the layout names."""
    truth = _check_landmarks(truth, "truth", layout)
    if not layout.left_pupil or not layout.right_pupil:
        raise InputError(f"layout: {layout.name!r} names no pupils, so there is no inter-pupil distance")
    left, right = truth[:, list(layout.left_pupil)].mean(axis=1), truth[:, list(layout.right_pupil)].mean(axis=1)
    return np.linalg.norm(left - right, axis=-1)


def box_size(truth: np.ndarray) -> np.ndarray:
    """sqrt(width x height) [N] of the boxes around landmarks [N, K, 2]."""
    return np.sqrt(np.ptp(_check_landmarks(truth, "truth"), axis=1).prod(axis=-1))


def usable_normaliser(normaliser: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which normalisers [N] of faces [N, K, 2] can divide an error: those above 0.1 % of the larger box side. [N] bool.

    That is a quarter of a pixel in a 256 px face, finer than anybody annotates, so the quotient below it is noise. The
    bound is low on purpose: published numbers count profile faces, and dropping more of them would flatter ours."""
    sides = np.ptp(_check_landmarks(truth, "truth"), axis=1).max(axis=-1)
    normaliser = _check_per_face(normaliser, len(sides))
    return np.isfinite(normaliser) & (normaliser > LEAST_NORMALISER * sides)


def ced(nme: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Cumulative error distribution: the share, 0 to 1, of faces with NME [N] up to each threshold [T] (percent)."""
    return np.searchsorted(np.sort(_check_values(nme, "nme")), thresholds, side="right") / len(nme)


def failure_rate(nme: np.ndarray, threshold: float) -> float:
    """Percent of faces whose NME [N] exceeds the threshold (percent)."""
    return 100 * float(np.mean(_check_values(nme, "nme") > _check_threshold(threshold)))


def auc(nme: np.ndarray, threshold: float) -> float:
    """Area under the `ced` from 0 to the threshold over the threshold, 0 to 1, by Simpson's rule every 0.01 percent.

    `linspace`, because `arange(0, t + step, step)` runs past some thresholds: 16 percent, or 0.05 in shares."""
    intervals = max(1, round(_check_threshold(threshold) / AUC_STEP))
    thresholds = np.linspace(0, threshold, intervals + 1)
    return float(simpson(ced(nme, thresholds), x=thresholds) / threshold)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = 95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of values [N], at `level` percent (Efron 1979).

    It speaks for the choice of test faces alone, not for the luck of a training run."""
    values = _check_values(values, "values")
    if not 0 < level < 100:
        raise InputError(f"level: expected percent between 0 and 100, got {level}")
    generator = np.random.default_rng(seed)
    statistics = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(resamples)]
    low, high = np.percentile(statistics, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)


def _as_floats(array: np.ndarray, argument: str) -> np.ndarray:
    try:
        return np.asarray(array, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor with a gradient
        raise InputError(f"{argument}: expected an array of numbers, got {type(array).__name__} ({error})") from error


def _check_landmarks(array: np.ndarray, argument: str, layout: Layout | None = None) -> np.ndarray:
    array = _as_floats(array, argument)
    count = layout.num_landmarks if layout else array.shape[1] if array.ndim == 3 else "K"
    if array.ndim != 3 or array.shape[1:] != (count, 2) or count == 0:
        raise InputError(f"{argument}: expected landmarks [N, {count or 'K'}, 2], got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        face, landmark, axis = np.argwhere(~np.isfinite(array))[0]
        got = f"{array[face, landmark, axis]} for landmark {landmark} of face {face}"
        raise InputError(f"{argument}: expected finite numbers, got {got}")
    return array


def _check_per_face(normaliser: np.ndarray, faces: int) -> np.ndarray:
    normaliser = _as_floats(normaliser, "normaliser")
    if normaliser.shape != (faces,):
        raise InputError(f"normaliser: expected shape ({faces},), one per face, got {normaliser.shape}")
    return normaliser


def _check_normaliser(normaliser: np.ndarray, faces: int) -> np.ndarray:
    normaliser = _check_per_face(normaliser, faces)
    bad = np.flatnonzero(~(np.isfinite(normaliser) & (normaliser > 0)))
    if len(bad):
        listed = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise InputError(f"normaliser: expected finite numbers above zero, got {normaliser[bad[0]]} (faces {listed})")
    return normaliser


def _check_values(values: np.ndarray, argument: str) -> np.ndarray:
    values = _as_floats(values, argument)
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"{argument}: expected one number per face, [N] with N > 0, got shape {values.shape}")
    if not np.isfinite(values).all():
        face = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"{argument}: expected finite numbers, got {values[face]} at [{face}]")
    return values


def _check_threshold(threshold: float) -> float:
    if not (np.isfinite(threshold) and threshold > 0):
        raise InputError(f"threshold: expected percent above zero, got {threshold}")
    return threshold
