"""How long it takes to score 2,500 faces of 98 points from a file of predictions, as WFLW's test set has: seconds for
reading, matching, all numbers with their intervals, a comparison of two systems, and the files; pictures are apart.

python benchmarks/bench_evaluation.py --out FILE.json"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import ROOT, write_result

sys.path.insert(0, str(ROOT))

from iact.data.faces import Face, Faces, ImageFile  # noqa: E402
from iact.data.synthetic import DrawnImage  # noqa: E402
from iact.data.wflw import ATTRIBUTES, SPLITS  # noqa: E402
from iact.evaluation import Protocol, compare, evaluate_predictions, format_report, format_tables  # noqa: E402
from iact.evaluation.writing import write_numbers  # noqa: E402
from iact.layouts import WFLW  # noqa: E402
from iact.matching import doubt_first_pixel, match_predictions  # noqa: E402
from iact.plots import plot_ced  # noqa: E402
from iact.predictions import read_predictions  # noqa: E402


def drawn_set(count: int) -> Faces:
    """Faces whose pictures hold one or two of them, with as many attributes as the test set of WFLW."""
    generator = np.random.default_rng(0)
    shapes = np.stack([DrawnImage(0, index, WFLW.name).scene().landmarks for index in range(20)])
    records = []
    for index in range(count):
        landmarks = shapes[index % 20] * generator.uniform(0.5, 2) + 300 * (index % 3 == 1)
        tags = frozenset(tag for tag in ATTRIBUTES if generator.random() < SPLITS[tag] / SPLITS["test"])
        name = f"folder {index % 60}/{index - (index % 3 == 1)}.jpg"
        records.append(Face(f"{name}:{index}", ImageFile(Path("WFLW_images") / name), landmarks, "", tags=tags))
    return Faces(WFLW, "test", tuple(records))


def write_predictions(faces: Faces, folder: Path, noise: float) -> None:
    """The same predictions as .csv and .npz, named by pictures."""
    generator = np.random.default_rng(1)
    truth = np.stack([face.landmarks for face in faces.records])
    predicted = (truth + generator.normal(0, noise, truth.shape)).round(3)
    names = [face.image.path.as_posix() for face in faces.records]
    np.savez(folder / "predictions.npz", names=np.array(names), landmarks=predicted)
    header = ",".join(["name", *(f"{axis}_{i}" for i in range(98) for axis in "xy")])
    rows = (",".join([name, *map(str, points.ravel())]) for name, points in zip(names, predicted, strict=True))
    (folder / "predictions.csv").write_text("\n".join([header, *rows]))


def timed(figures: dict[str, float], name: str, work):
    start = time.perf_counter()
    result = work()
    figures[name] = round(time.perf_counter() - start, 2)
    return result


def score(path: Path, faces: Faces, figures: dict[str, float], kind: str):
    given = timed(figures, f"read {kind}", lambda: read_predictions(path))
    matched = timed(figures, f"match {kind}", lambda: match_predictions(given, faces, path))
    truth = np.stack([face.landmarks for face in faces.records])
    timed(figures, f"doubt {kind}", lambda: doubt_first_pixel(matched.landmarks, truth, 0))
    about = {"data_set": "wflw", "box_rule": "none", "flip_test": None, "weights": str(path)}
    protocol = Protocol.of(faces, **about)
    work = lambda: evaluate_predictions(matched.landmarks, faces, protocol, thresholds=(8, 10))  # noqa: E731
    return timed(figures, f"numbers and intervals {kind}", work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=SPLITS["test"])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    chosen = parser.parse_args()
    faces, figures = drawn_set(chosen.faces), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_predictions(faces, folder, 3)
        first, second = (score(folder / f"predictions.{kind}", faces, figures, kind) for kind in ("csv", "npz"))
        timed(figures, "compare", lambda: compare(first, second))
        timed(figures, "text and tables", lambda: (format_report(first), format_tables({"a": first, "b": second})))
        timed(figures, "write JSON and CSV", lambda: write_numbers(first, folder))
        curves = {"a": first.errors["interocular"], "b": second.errors["interocular"]}
        pictures: dict[str, float] = {}
        timed(pictures, "curves of two systems", lambda: plot_ced(curves, 10, "drawn", folder / "ced.png"))
    for name, seconds in (figures | pictures).items():
        print(f"{name:>28}  {seconds:6.2f} s")
    print(f"{'all but pictures':>28}  {sum(figures.values()):6.2f} s for two files of {len(faces)} faces")
    if chosen.out:
        total = round(sum(figures.values()), 2)
        write_result(chosen.out, {"benchmark": "evaluation", "faces": len(faces), "seconds": figures, "total": total})


if __name__ == "__main__":
    main()
