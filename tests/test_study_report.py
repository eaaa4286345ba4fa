"""What a study concludes from the errors of its trainings."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from iact import metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import study_report  # noqa: E402


def test_differences_are_paired_over_faces_and_need_all_seeds():
    random = np.random.default_rng(0)
    faces = random.gamma(4.0, 1.0, 200)  # far apart from each other, but each close to itself
    default = {seed: faces + random.normal(0, 0.05, 200) for seed in (0, 1)}
    same = study_report.compare(default, default)
    assert (same["difference"], same["interval_95"], same["verdict"]) == (0.0, [0.0, 0.0], "undecided")
    worse = study_report.compare({seed: nme + 0.1 for seed, nme in default.items()}, default)
    assert worse["difference"] == pytest.approx(0.1) and worse["verdict"] == "worse"
    noisy = {seed: faces - 0.1 + random.normal(0, 0.05, 200) for seed in (0, 1)}
    better = study_report.compare(noisy, default)
    low, high = better["interval_95"]
    assert better["verdict"] == "better" and low < -0.1 < high < 0 and high - low < 0.05
    torn = study_report.compare({0: default[0] + 0.3, 1: default[1] - 0.1}, default)
    assert torn["interval_95"][0] > 0 and torn["verdict"] == "undecided"
    assert study_report.compare({2: faces, 1: default[1]}, default)["seeds_compared"] == 1
    assert study_report.compare({2: faces}, default) is None


def test_the_summary_of_a_variant_is_over_faces_and_seeds():
    errors = {0: [1.0, 3.0, 12.0, 4.0], 1: [2.0, 4.0, 11.0, 5.0]}
    rows = [
        {"variant": "default", "against": "", "seed": seed, "minutes": 1.0 + seed, "errors": errors[seed]}
        for seed in (0, 1)
    ]
    (entry,) = study_report.summarise(rows)
    assert entry["nme"] == 5.25 and entry["between_seeds"] == pytest.approx(0.5 / 2**0.5)
    assert entry["fr_0.1"] == 25.0 and entry["minutes"] == 1.5 and "difference" not in entry
    assert entry["auc_0.1"] == pytest.approx(np.mean([metrics.auc(np.array(nme), 10.0) for nme in errors.values()]))


def test_curves_show_each_variant_once(tmp_path):
    rows = [
        {"variant": name, "seed": seed, "curve": [9.0 - seed, 5.0, 3.0]}
        for seed in (0, 1)
        for name in ("iact/smooth_wing", "iact/adaptive_wing")
    ]
    curves = study_report.curves_of([*rows, {"variant": "flip_test", "seed": 0}])
    assert {name: curve.shape for name, curve in curves.items()} == dict.fromkeys(curves, (2, 3)) and len(curves) == 2
    study_report.plot_curves(curves, "figure4", tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 10
