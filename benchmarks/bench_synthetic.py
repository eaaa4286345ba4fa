"""Mean time to draw a face on one core, at three sizes, and to place its landmarks without drawing it."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from iact.data.synthetic import DrawnImage, draw_face  # noqa: E402
from iact.layouts import WFLW  # noqa: E402


def milliseconds(work: Callable[[int], object], count: int, rounds: int = 3) -> float:
    """Processor time of one call in ms: the best round's mean, so that other programs disturb it least."""
    work(0)  # fills the noise banks and curve tables
    means = []
    for _ in range(rounds):
        start = time.process_time()
        for index in range(count):
            work(index)
        means.append((time.process_time() - start) / count * 1e3)
    return min(means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="faces a round (default: 200)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    figures = {"landmarks only": milliseconds(lambda i: DrawnImage(0, i, WFLW.name).scene(), arguments.count)}
    for size in (256, 192, 128):
        figures[f"{size} px"] = milliseconds(lambda i, size=size: draw_face(0, i, WFLW, size), arguments.count)
    for name, value in figures.items():
        print(f"{name:>14}  {value:5.2f} ms a face")
    if arguments.out:
        write_result(arguments.out, {"benchmark": "synthetic", "milliseconds": figures})


if __name__ == "__main__":
    main()
