"""Fits the map from a detector's boxes to landmark boxes (HAAR_TO_LANDMARKS and YUNET_TO_LANDMARKS in iact/detector.py)
on 300W's training faces, and says how far off the boxes are before and after it."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from iact.__main__ import end  # noqa: E402
from iact.data import read_faces  # noqa: E402
from iact.detector import (  # noqa: E402
    HAAR_TO_LANDMARKS,
    YUNET_TO_LANDMARKS,
    Detector,
    YuNet,
    haar_boxes,
    to_landmark_boxes,
)
from iact.geometry import landmark_box  # noqa: E402

MATCH = 0.3  # least overlap (IoU) of a detected box with the landmark box of its face


def overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """IoU [N] of boxes [N, 4] with one box."""
    inner = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None).prod(axis=1)
    return inner / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - inner)


def match(find: Detector, image: np.ndarray, truth: np.ndarray) -> np.ndarray | None:
    """The detected box that overlaps the landmark box most, if any does enough."""
    boxes = find(image)
    overlaps = overlap(boxes, truth)
    return boxes[overlaps.argmax()] if overlaps.max(initial=0) > MATCH else None


def centre_and_side(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a crop depends on: the centres [N, 2] of boxes [N, 4] and their larger sides [N, 1]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)


def fit(detected: np.ndarray, truth: np.ndarray) -> list[float]:
    """Median shift to the right and down, and median side, in larger sides of the detected box."""
    (centre, side), (true_centre, true_side) = centre_and_side(detected), centre_and_side(truth)
    return [*np.median((true_centre - centre) / side, axis=0).tolist(), float(np.median(true_side / side))]


def errors(boxes: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    """10th, 50th and 90th percentile of the errors, in sides of the landmark box."""
    (centre, side), (true_centre, true_side) = centre_and_side(boxes), centre_and_side(truth)
    shift = (centre - true_centre) / true_side
    measured = {
        "side ratio": side / true_side,
        "shift right": shift[:, 0],
        "shift down": shift[:, 1],
        "centre distance": np.linalg.norm(shift, axis=1),
    }
    return {name: np.percentile(values, [10, 50, 90]).round(3).tolist() for name, values in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of 300W")
    parser.add_argument("--pictures", type=int, default=600, help="how many training pictures (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--yunet", type=Path, help="YuNet's model file, to fit YuNet instead of the Haar cascade")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    faces = read_faces("300w", arguments.root, "train").records
    chosen = np.random.default_rng(arguments.seed).permutation(len(faces))[: arguments.pictures]
    boxes = [landmark_box(faces[i].landmarks) for i in chosen]
    find, in_use = (
        (YuNet(arguments.yunet).boxes, YUNET_TO_LANDMARKS) if arguments.yunet else (haar_boxes, HAAR_TO_LANDMARKS)
    )
    found = [match(find, faces[i].image.read(), box) for i, box in zip(chosen, boxes, strict=True)]
    detected = np.array([box for box in found if box is not None])
    truth = np.array([box for box, match in zip(boxes, found, strict=True) if match is not None])
    record = {
        "benchmark": "fit_detector",
        "detector": "yunet" if arguments.yunet else "haar",
        "pictures": len(chosen),
        "faces found": len(detected),
        "detection rate": round(len(detected) / len(chosen), 4),
        "fitted (shift right, shift down, side)": np.round(fit(detected, truth), 4).tolist(),
        "in use": list(in_use),
        "percentiles 10, 50, 90 before": errors(detected, truth),
        "percentiles 10, 50, 90 after": errors(to_landmark_boxes(detected, in_use), truth),
        "seed": arguments.seed,
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        write_result(arguments.out, record)


if __name__ == "__main__":
    end(main)
