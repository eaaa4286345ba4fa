"""Mean time to draw a face on one core, at three sizes, and to place its landmarks without drawing it."""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from iact.data.synthetic import DrawnImage, draw_face
from iact.layouts import WFLW


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


def machine() -> dict[str, str]:
    root = Path(__file__).resolve().parent.parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "commit": git.stdout.strip() if git.returncode == 0 else "unknown",
    }


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
        record = {"benchmark": "synthetic", "milliseconds": figures, **machine()}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
