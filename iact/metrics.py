"""How wrong landmarks are: normalised mean error, failure rate, area under the error curve, and how sure one may be.

NME and thresholds are in percent of the normaliser. NME is a mean *per face*: pooling the landmarks of all faces, as
some do, gives another number as soon as faces count different landmarks. A face that was not found has an infinite NME:
failure rate, error curve and the area under it count it as a failure at any threshold.

Distances, normalisers and NME take NumPy arrays and tensors alike, and compute in float64 where these are: a training
on a GPU measures itself there, by the same lines as files are measured."""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

from iact.errors import InputError
from iact.layouts import Layout

AUC_STEP = 0.01  # percent between two samples of the error curve: the field's 1e-4
MOST_KEPT = 4096  # faces, of which the draws of a bootstrap are kept in memory
LEAST_NORMALISER = 1e-3  # of the larger side of the landmark box, see `usable_normaliser`
Array = TypeVar("Array", np.ndarray, torch.Tensor)


def nme(predicted: Array, truth: Array, normaliser: Array) -> Array:
    """Mean distance between predicted and true landmarks, each [N, K, 2], over the normaliser [N]: [N] in percent.

    InputError when shapes differ, a number is not finite, or a normaliser is not above zero (profile faces: choose
    the faces with `usable_normaliser` and report the others)."""
    distances, normaliser = landmark_distances(predicted, truth), _check_normaliser(normaliser, len(truth))
    _check_one_kind(truth=distances, normaliser=normaliser)
    return 100 * distances.mean(axis=1) / normaliser


def landmark_distances(predicted: Array, truth: Array) -> Array:
    """Distances [N, K] in px between landmarks [N, K, 2]; InputError when shapes differ or a number is not finite."""
    predicted, truth = _check_landmarks(predicted, "predicted"), _check_landmarks(truth, "truth")
    _check_one_kind(truth=truth, predicted=predicted)
    if predicted.shape != truth.shape:
        raise InputError(f"predicted: expected the shape of truth, {tuple(truth.shape)}, got {tuple(predicted.shape)}")
    return _lengths(predicted - truth)


def interocular(truth: Array, layout: Layout) -> Array:
    """Distance [N] between the outer eye corners of landmarks [N, K, 2]."""
    truth = _check_landmarks(truth, "truth", layout)
    left, right = layout.eye_corners
    return _lengths(truth[:, left] - truth[:, right])


def interpupil(truth: Array, layout: Layout) -> Array:
    """Distance [N] between the pupils of landmarks [N, K, 2]; a pupil is the mean of the landmarks the layout names."""
    truth = _check_landmarks(truth, "truth", layout)
    if not layout.left_pupil or not layout.right_pupil:
        raise InputError(f"layout: {layout.name!r} names no pupils, so there is no inter-pupil distance")
    left, right = truth[:, list(layout.left_pupil)].mean(axis=1), truth[:, list(layout.right_pupil)].mean(axis=1)
    return _lengths(left - right)


def box_size(truth: Array) -> Array:
    """sqrt(width x height) [N] of the boxes around landmarks [N, K, 2]."""
    return _box_sides(_check_landmarks(truth, "truth")).prod(axis=-1) ** 0.5


def usable_normaliser(normaliser: Array, truth: Array) -> Array:
    """Which normalisers [N] of faces [N, K, 2] can divide an error: those above 0.1 % of the larger box side. [N] bool.

    That is a quarter of a pixel in a 256 px face, finer than anybody annotates, so the quotient below it is noise. The
    bound is low on purpose: published numbers count profile faces, and dropping more of them would flatter ours."""
    sides = _box_sides(_check_landmarks(truth, "truth"))
    normaliser, library = _check_per_face(normaliser, len(sides)), _library(sides)
    return library.isfinite(normaliser) & (normaliser > LEAST_NORMALISER * library.amax(sides, -1))


def normalised_mean_flicker(predicted: np.ndarray, truth: np.ndarray) -> float:
    """How much a face's errors change from frame to frame: landmarks [T, K, 2] of T >= 2 frames in a row; in percent.

    NMF = 100 sqrt(mean over t > 0 and k of (|r_tk - r_(t-1)k| / s_t)^2), where r = predicted - truth, and s_t is the
    `box_size` of the truth (LDEQ, Micaelli et al. 2023, after its code, which divides s_t by 256: its numbers are 256
    times ours). A constant error does not flicker. InputError when shapes differ, or a box has no area."""
    predicted, truth = _check_landmarks(predicted, "predicted"), _check_landmarks(truth, "truth")
    if predicted.shape != truth.shape or len(truth) < 2:
        raise InputError(f"predicted: expected landmarks of 2 frames or more, as truth has, got {predicted.shape}")
    changes = _lengths(np.diff(predicted - truth, axis=0))
    return 100 * float(np.sqrt(np.mean((changes / _check_normaliser(box_size(truth), len(truth))[1:, None]) ** 2)))


def ced(nme: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Cumulative error distribution: the share, 0 to 1, of faces with NME [N] up to each threshold [T] (percent)."""
    return np.searchsorted(np.sort(_check_errors(nme)), thresholds, side="right") / len(nme)


def failure_rate(nme: np.ndarray, threshold: float) -> float:
    """Percent of faces whose NME [N] exceeds the threshold (percent)."""
    return float(failures(nme, threshold).mean())


def failures(nme: np.ndarray, threshold: float) -> np.ndarray:
    """What each face [N] adds to the `failure_rate`, their mean: 100 where its NME exceeds the threshold, else 0."""
    return 100.0 * (_check_errors(nme) > _check_threshold(threshold))


def auc(nme: np.ndarray, threshold: float) -> float:
    """Area under the `ced` from 0 to the threshold over the threshold, 0 to 1, by Simpson's rule every 0.01 percent.

    `linspace`, because `arange(0, t + step, step)` runs past some thresholds: 16 percent, or 0.05 in shares."""
    return float(areas(nme, threshold).mean())


def areas(nme: np.ndarray, threshold: float) -> np.ndarray:
    """What each face [N] adds to the `auc`, which is their mean: the area under a curve that rises at its NME."""
    thresholds, area_from = _steps(_check_threshold(threshold))
    return area_from[np.searchsorted(thresholds, _check_errors(nme), side="left")]


@lru_cache(maxsize=16)
def _steps(threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The samples [T] of the error curve; the area under one that rises from 0 to 1 at each, or never [T + 1]."""
    intervals = 2 * max(1, round(threshold / AUC_STEP / 2))  # Simpson's rule wants an even number
    weights = np.full(intervals + 1, 2.0)
    weights[1::2], weights[[0, -1]] = 4, 1
    area_from = np.cumsum(weights[::-1])[::-1] / (3 * intervals)
    return np.linspace(0, threshold, intervals + 1), np.append(area_from, 0)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = 95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of values [N], at `level` percent (Efron 1979).

    Of the differences of two systems on the same faces it is the paired bootstrap. It speaks for the choice of test
    faces alone, not for the luck of a training run."""
    values = _check_values(values, "values")
    if not 0 < level < 100:
        raise InputError(f"level: expected percent between 0 and 100, got {level}")
    if statistic is np.mean and len(values) <= MOST_KEPT:
        statistics = _draws(len(values), resamples, seed) @ values / len(values)
    else:
        generator = np.random.default_rng(seed)
        statistics = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(resamples)]
    low, high = np.percentile(statistics, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)


def rate_interval(values: np.ndarray, level: float = 95) -> tuple[float, float]:
    """Interval (low, high), in percent, of a rate of faces from `failures` [N], at `level` percent (Wilson 1927)."""
    values = _check_values(values, "values")
    count, rate, z = len(values), float(np.mean(values)) / 100, NormalDist().inv_cdf(0.5 + level / 200)
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


@lru_cache(maxsize=2)
def _draws(faces: int, resamples: int, seed: int) -> np.ndarray:
    """How often each face is drawn [resamples, faces]; kept, because reports ask for many means of the same faces."""
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, faces, faces) for _ in range(resamples))
    return np.array([np.bincount(each, minlength=faces) for each in drawn], np.float64)


def _library(array: Array) -> ModuleType:
    """What computes with it: NumPy or PyTorch, whose functions used here have the same names."""
    return torch if isinstance(array, torch.Tensor) else np


def _lengths(vectors: Array) -> Array:
    return (vectors**2).sum(axis=-1) ** 0.5


def _box_sides(landmarks: Array) -> Array:
    """Width and height [N, 2] of the boxes around landmarks [N, K, 2]."""
    library = _library(landmarks)
    return library.amax(landmarks, 1) - library.amin(landmarks, 1)


def _in_doubles(array: Array, argument: str) -> Array:
    """Where it is: a tensor stays one, on its device."""
    return array.double() if isinstance(array, torch.Tensor) else _as_floats(array, argument)


def _as_floats(array: np.ndarray, argument: str) -> np.ndarray:
    try:
        return np.asarray(array, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor with a gradient
        raise InputError(f"{argument}: expected an array of numbers, got {type(array).__name__} ({error})") from error


def _check_one_kind(truth: Array, **other: Array) -> None:
    (name, array), *_ = other.items()
    if _library(array) is not _library(truth):
        raise InputError(f"{name}: expected {type(truth).__name__}, as the truth is, got {type(array).__name__}")


def _check_landmarks(array: Array, argument: str, layout: Layout | None = None) -> Array:
    array = _in_doubles(array, argument)
    library = _library(array)
    count = layout.num_landmarks if layout else array.shape[1] if array.ndim == 3 else "K"
    if array.ndim != 3 or array.shape[1:] != (count, 2) or count == 0:
        got = f"an array of shape {tuple(array.shape)}"
        raise InputError(f"{argument}: expected landmarks [N, {count or 'K'}, 2], got {got}")
    if not library.isfinite(array).all():
        face, landmark, axis = library.argwhere(~library.isfinite(array))[0].tolist()
        got = f"{array[face, landmark, axis]} for landmark {landmark} of face {face}"
        raise InputError(f"{argument}: expected finite numbers, got {got}")
    return array


def _check_per_face(normaliser: Array, faces: int) -> Array:
    normaliser = _in_doubles(normaliser, "normaliser")
    if normaliser.shape != (faces,):
        raise InputError(f"normaliser: expected shape ({faces},), one per face, got {tuple(normaliser.shape)}")
    return normaliser


def _check_normaliser(normaliser: Array, faces: int) -> Array:
    normaliser = _check_per_face(normaliser, faces)
    bad = _library(normaliser).argwhere(~((normaliser > 0) & (normaliser < math.inf))).ravel().tolist()
    if bad:
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


def _check_errors(nme: np.ndarray) -> np.ndarray:
    nme = _as_floats(nme, "nme")
    _check_values(np.where(nme == np.inf, 0, nme), "nme")
    return nme


def _check_threshold(threshold: float) -> float:
    if not (np.isfinite(threshold) and threshold > 0):
        raise InputError(f"threshold: expected percent above zero, got {threshold}")
    return threshold
