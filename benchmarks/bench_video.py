"""Measures landmarks in videos of faces moved by known motion: error, flicker, lag and speed.

python benchmarks/bench_video.py --weights runs/300w [--root DIR] --out benchmarks/results

Each video is one picture, a drawn face or with --root one of 300W's test set, that rests for a third of the time and
then swings, with the noise of a camera (made_video.py). Boxes are the true ones, those of the detector in every frame,
or the tracker's; each with and without smoothing. Rows give means over the videos: NME in percent of the distance
between the outer eye corners, flicker (NMF) in percent of the face size while the face rests and while it moves, lag in
ms (the shift in time that explains most of the error of the face's centre), and frames a second with one face, reading
and drawing left out. `found` is the share of frames in which a face overlaps the true one; the others repeat the last.
Faces that the detector does not find in the first frame are left out of all rows and counted. It does not take drawn
faces for faces, so there it is replaced by true boxes with errors as large as its own: its speed means nothing."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from made_video import RATE, MadeVideo  # noqa: E402

from iact.__main__ import end  # noqa: E402
from iact.data import read_faces  # noqa: E402
from iact.data.synthetic import draw_face  # noqa: E402
from iact.geometry import landmark_box  # noqa: E402
from iact.layouts import Layout  # noqa: E402
from iact.metrics import interocular, nme, normalised_mean_flicker  # noqa: E402
from iact.predictor import PredictedFace, Predictor  # noqa: E402
from iact.video import OneEuro, Tracker  # noqa: E402
from iact.video.tracking import overlap  # noqa: E402

Find = Callable[[np.ndarray, int], list[PredictedFace]]
SHIFT, GROWTH = 0.06, 0.09  # standard deviations of Haar's boxes, in sides: see results/detector_fit.json
MATCH = 0.3  # least overlap (IoU) of a face that is found with the true one


def detector_boxes(boxes: np.ndarray, seed: int) -> np.ndarray:
    """Squares [T, 4] about boxes [T, 4], with the errors of a detector."""
    generator = np.random.default_rng(seed)
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + SHIFT * side * generator.standard_normal((len(boxes), 2))
    half = side / 2 * np.exp(GROWTH * generator.standard_normal(side.shape))
    return np.concatenate([centre - half, centre + half], axis=1)


def pictures(layout: Layout, root: Path | None, seed: int):
    """Pictures of faces and their landmarks, in the order of the draw."""
    if root is None:
        index = 0
        while True:
            yield draw_face(seed, index, layout, 480, "test")[:2]
            index += 1
    records = read_faces("300w", root, "common").records
    for i in np.random.default_rng(seed).permutation(len(records)):
        yield records[i].image.read(), records[i].landmarks


def finders(predictor: Predictor, boxes: np.ndarray) -> dict[str, Find]:
    """What finds the faces of a frame, by name."""
    tracker = Tracker(predictor)
    return {
        "true boxes": lambda image, t: predictor(image, boxes[t : t + 1]),
        "detector": lambda image, t: predictor(image),
        "tracker": lambda image, t: tracker(image),
    }


def follow(
    find: Find, video: MadeVideo, predictor: Predictor, detected: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Landmarks [T, K, 2], whether each frame has some [T], and seconds spent; NaN before the first."""
    landmarks, found, seconds = np.full(video.truth.shape, np.nan), np.zeros(video.frames, bool), 0.0
    for t, (image, truth) in enumerate(zip(video, video.truth, strict=True)):
        if detected is not None:
            predictor.detector = lambda image, box=detected[t : t + 1]: box
        start = time.perf_counter()
        faces = find(image, t)
        seconds += time.perf_counter() - start
        right = [face.landmarks for face in faces if overlap(landmark_box(face.landmarks), landmark_box(truth)) > MATCH]
        found[t] = bool(right)
        landmarks[t] = right[0] if right else landmarks[t - 1]
    return landmarks, found, seconds


def smoothed(landmarks: np.ndarray, times: np.ndarray) -> np.ndarray:
    smooth = OneEuro()
    return np.array([smooth(points, time) for points, time in zip(landmarks, times, strict=True)])


def lag(landmarks: np.ndarray, truth: np.ndarray) -> float:
    """Milliseconds by which the centre of the landmarks comes after that of the truth, by least squares."""
    centre, true_centre = landmarks.mean(axis=1), truth.mean(axis=1)
    velocity = np.gradient(true_centre, axis=0) * RATE
    error = centre - true_centre
    error = error - error.mean(axis=0)
    return float(-1e3 * (error * velocity).sum() / (velocity**2).sum())


def measure(landmarks: np.ndarray, video: MadeVideo, layout: Layout) -> dict[str, float]:
    rest, truth = video.resting, video.truth
    return {
        "nme_resting": float(nme(landmarks[:rest], truth[:rest], interocular(truth[:rest], layout)).mean()),
        "nme_moving": float(nme(landmarks[rest:], truth[rest:], interocular(truth[rest:], layout)).mean()),
        "flicker_resting": normalised_mean_flicker(landmarks[:rest], truth[:rest]),
        "flicker_moving": normalised_mean_flicker(landmarks[rest:], truth[rest:]),
        "lag_ms": lag(landmarks[rest:], truth[rest:]),
    }


def run(predictor: Predictor, video: MadeVideo, drawn: bool) -> dict[tuple[str, bool], dict[str, float]] | None:
    """The figures of one video by boxes and smoothing; None where the detector does not find the face at first."""
    results, boxes = {}, landmark_box(video.truth)
    detected = detector_boxes(boxes, video.seed) if drawn else None
    for name, find in finders(predictor, boxes).items():
        landmarks, found, seconds = follow(find, video, predictor, detected)
        if not found[0]:
            return None
        speed = {"found": float(found.mean()), "frames_per_second": video.frames / seconds}
        for smooth in (False, True):
            points = smoothed(landmarks, video.times) if smooth else landmarks
            results[name, smooth] = measure(points, video, predictor.layout) | speed
    return results


def rows(results: list[dict[tuple[str, bool], dict[str, float]]]) -> list[dict]:
    """Means over the videos, to four digits."""
    table = []
    for name, smooth in results[0]:
        figures = [result[name, smooth] for result in results]
        means = {key: float(f"{np.mean([figure[key] for figure in figures]):.4g}") for key in figures[0]}
        table.append({"boxes": name, "smoothed": smooth, **means})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights file or run folder")
    parser.add_argument("--root", type=Path, help="folder of 300W; drawn faces without it")
    parser.add_argument("--videos", type=int, default=10, help="how many faces (default: 10)")
    parser.add_argument("--frames", type=int, default=180, help="frames of a video, at 30 a second (default: 180)")
    parser.add_argument("--noise", type=float, default=4.0, help="of the camera, in grey levels (default: 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the figures")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        cv2.setNumThreads(arguments.threads)
    predictor = Predictor.from_pretrained(arguments.weights, device=arguments.device)
    results, unfound = [], 0
    for picture, face in pictures(predictor.layout, arguments.root, arguments.seed):
        if len(results) == arguments.videos:
            break
        video = MadeVideo(picture, face, arguments.frames, noise=arguments.noise, seed=len(results))
        result = run(predictor, video, drawn=arguments.root is None)
        unfound += result is None
        results += [result] if result else []
    table = rows(results)
    for row in table:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if arguments.out:
        faces = "300w" if arguments.root else "drawn"
        about = {"benchmark": "video", "faces": faces, "videos": len(results), "faces_left_out": unfound}
        about |= {"frames": arguments.frames, "noise": arguments.noise, "seed": arguments.seed}
        about |= {"device": str(predictor.device), "trained_on": str(predictor.description.trained_on)}
        about |= {"network": vars(predictor.model.config)}
        write_result(arguments.out / f"video_{faces}_{predictor.device.type}.json", about, table)


if __name__ == "__main__":
    end(main)
